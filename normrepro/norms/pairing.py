"""Find the convolutions that feed each norm: run the model on an example and follow its tensors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from normrepro.norms.base import Normalizer
from normrepro.norms.flow import Flow

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Pixels of a guessed image. 299 is for auxiliary heads of Inception-v3, too deep for smaller maps.
SIZES = {nn.Conv1d: [(256,)], nn.Conv2d: [(224,) * 2, (299,) * 2], nn.Conv3d: [(16, 112, 112)]}


def find_sources(
    model: nn.Module, norms: Iterable[str], example: Any = None, training: bool = True
) -> Flow:
    """Follow the outputs of a model's convolutions and linear layers to its norms.

    The model runs in evaluation mode; norms that did not run then (auxiliary heads) get a second
    run in training mode, with all norms still in evaluation mode. Buffers, modes and the random
    state are as before afterwards.

    Args:
        model: Any model.
        norms: Names of the modules to follow the outputs to.
        example: A batch (a list of images for a detection model), a tuple of arguments, or a
            mapping of keyword arguments; guessed where it is None.
        training: Whether to make the second run.

    Returns:
        The finished `Flow`: sources of each norm that ran, and what else convolutions feed.

    Raises:
        ValueError: No example was given, and the model accepts none of the guessed ones.
    """
    names, flow, refusal = set(norms), Flow(), None
    with _untouched(model), torch.no_grad():
        for guess in guesses(model) if example is None else [example]:
            for mode in (False, True) if training else (False,):
                if names <= flow.sources.keys():
                    return flow
                try:
                    flow = _run(model, names, guess, mode, flow)
                except (
                    Exception
                ) as error:  # whatever a model does with an input that it cannot take
                    if example is not None and not mode:
                        raise
                    refusal = refusal or error
    if not flow.sources and example is None:
        raise ValueError(
            "one run of the model must show which convolution feeds which norm: pass example=<a "
            f"batch that the model accepts> (guessed ones did not do: {refusal})"
        ) from refusal
    return flow


def guesses(model: nn.Module) -> Iterator[Any]:
    """Yield batches that a model may accept, from timm's configuration or its first layer."""
    first = next((m for m in model.modules() if isinstance(m, CONVOLUTIONS)), None)
    config = getattr(model, "pretrained_cfg", None) or {}
    transform = getattr(model, "transform", None)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    if type(transform).__name__ == "GeneralizedRCNNTransform":
        side = min(transform.min_size)
        yield [like.new_zeros(3, side, side).uniform_()]
    elif config.get("input_size"):
        channels, *size = config["input_size"]
        conv = config.get("first_conv")
        if isinstance(conv, str):  # in_chans=1 leaves the configuration as it was
            channels = model.get_submodule(conv).in_channels
        yield like.new_zeros(2, channels, *size)
    elif isinstance(first, nn.Linear):
        yield like.new_zeros(2, first.in_features)
    else:
        kind = next((k for k in SIZES if isinstance(first, k)), None)
        for size in SIZES.get(kind, []):
            yield like.new_zeros(2, first.in_channels, *size)


def _run(model: nn.Module, norms: set[str], example: Any, training: bool, before: Flow) -> Flow:
    """Run the model once; returns what it showed, together with what was known before."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | Normalizer):
            module.eval()
    args, kwargs = example if isinstance(example, tuple) else (example,), {}
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    args, kwargs = at_home((args, kwargs), model)
    flow = Flow()
    with _hooked(model, norms, flow), flow:
        outputs = model(*args, **kwargs)
    flow.escape()
    del outputs  # up to here it kept alive what the model puts out
    flow.sources |= before.sources
    flow.elsewhere |= before.elsewhere
    for conv, fed in before.feeds.items():
        flow.feeds.setdefault(conv, set()).update(fed)
    return flow


@contextmanager
def _hooked(model: nn.Module, norms: set[str], flow: Flow) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if name in norms:
            handles.append(module.register_forward_pre_hook(flow.entering_norm(name)))
            handles.append(module.register_forward_hook(flow.leaving_norm))
        elif isinstance(module, CONVOLUTIONS + TRANSPOSED):
            handles.append(module.register_forward_hook(flow.leaving_conv(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in model.modules()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    home = _home(model)
    with torch.random.fork_rng([home] if home.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def at_home(tree: Any, model: nn.Module) -> Any:
    """Move all tensors of a nest to a model's device, and those of floats to its dtype."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        like = next((p for p in model.parameters() if p.is_floating_point()), leaf)
        return leaf.to(like.device, like.dtype if leaf.is_floating_point() else leaf.dtype)

    return tree_map(move, tree)


def _home(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))

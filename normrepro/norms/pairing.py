"""Find the convolution that feeds each normalizer, by running the model once and watching which tensor goes where."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def default_example(model: nn.Module) -> Tensor:
    """Guess a batch of two that a model accepts, from timm's configuration or from its first layer.

    Raises:
        ValueError: Nothing in the model tells.
    """
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        return torch.zeros(2, *config["input_size"])
    sizes = {nn.Conv1d: (256,), nn.Conv2d: (224, 224), nn.Conv3d: (16, 112, 112), nn.Linear: ()}
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            kind = next(k for k in sizes if isinstance(module, k))
            return torch.zeros(2, getattr(module, "in_channels", 0) or module.in_features, *sizes[kind])
    raise ValueError("no convolution or linear layer in the model: pass example=")


def find_pairs(model: nn.Module, names: Iterable[str], example: Any) -> dict[str, str | None]:
    """Map each named module to the convolution whose output is its input.

    The model runs in evaluation mode; modules that did not run (auxiliary heads) get a second run in training mode.
    Buffers, modes and the random state are as before afterwards.

    Args:
        model: Any model.
        names: Modules, as in `named_modules`.
        example: A batch, or a tuple of arguments.

    Returns:
        name -> convolution's name, or None where the input comes from something else.
    """
    names = list(names)
    args = example if isinstance(example, tuple) else (example,)
    modes = {m: m.training for m in model.modules()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng():
        try:
            found = _watch(model.eval(), names, args)
            rest = [n for n in names if n not in found]
            if rest:
                found |= _watch_if_possible(model.train(), rest, args)
        finally:
            for module, mode in modes.items():
                module.training = mode
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return {name: found.get(name) for name in names}


def _watch_if_possible(model: nn.Module, names: list[str], args: tuple) -> dict[str, str | None]:
    try:
        return _watch(model, names, args)
    except Exception:  # detection models want targets in training mode; their norms all run in evaluation mode
        return {}


def _watch(model: nn.Module, names: list[str], args: tuple) -> dict[str, str | None]:
    produced: dict[int, tuple[Tensor, int, str]] = {}  # keeps the tensors, so that no id is used twice
    found: dict[str, str | None] = {}

    def leaving(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                produced[id(output)] = (output, output._version, name)

        return hook

    def entering(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            tensor, version, conv = produced.get(id(inputs[0]), (None, None, None))
            unchanged = tensor is not None and tensor._version == version
            found.setdefault(name, conv if unchanged else None)

        return hook

    handles = [
        m.register_forward_hook(leaving(n)) for n, m in model.named_modules() if isinstance(m, CONVOLUTIONS)
    ]
    handles += [model.get_submodule(n).register_forward_pre_hook(entering(n)) for n in names]
    try:
        model(*(a.to(_home(model)) if isinstance(a, Tensor) else a for a in args))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _home(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))

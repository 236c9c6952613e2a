"""Put a normalizer in place of every batch norm of a model, without editing the model's code."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normrepro.norms.base import Normalizer
from normrepro.norms.centre import release
from normrepro.norms.conversion import Conversion, NormAct, find_norms, replace
from normrepro.norms.flow import Flow, Source
from normrepro.norms.pairing import CONVOLUTIONS, find_sources

log = logging.getLogger("normrepro")
Build = Callable[..., Normalizer]


def convert(
    model: nn.Module,
    norm: str | Mapping | Build,
    group: int | None = None,
    replicas: int = 1,
    example: Any = None,
) -> nn.Module:
    """Replace every batch norm of a model, in place.

    Replaced are BatchNorm1d/2d/3d, SyncBatchNorm, timm's fused norm+act layers (their dropout and
    activation stay) and the layers of an earlier conversion, wherever they are used. Trained
    weights stay, as the same parameters, and running statistics where they mean something in the
    new layer. Convolutions that an earlier conversion centred get their centred weight as their
    parameter. Frozen and split batch norms and other kinds of norms are left as they are.

    Args:
        model: Any model, not yet wrapped by DistributedDataParallel.
        norm: A name from configs/norm (such as "mabn"), a mapping of the same form, or a callable
            that takes (channels, group=, replicas=, eps=, affine=) and returns a Normalizer.
        group: Images per set of statistics; None takes the whole batch of a replica.
        replicas: Devices of the protocol that this process stands for.
        example: What the model takes in: a batch, a list of images (detection), a tuple of
            arguments or a mapping of keyword arguments. Layers that need their convolution (MABN,
            CBN) find it by one run; guessed from the model where it is None.

    Returns:
        The model, with `model.conversion` telling what was done.

    Raises:
        ValueError: No batch norm, an unknown name, or no example where one is needed and none can
            be guessed. The model is as it was.
        TypeError: The model is wrapped by DistributedDataParallel.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError("convert the model first, then wrap it by DistributedDataParallel")
    old, kept = find_norms(model)
    if not old:
        found = f": there are {', '.join(sorted(set(kept.values())))}" if kept else ""
        raise ValueError(f"the model has no batch norm to replace{found}")
    builds = choose(norm, list(old))
    new = {n: _build(builds[n], old[n], group, replicas) for n in old}
    wanting = [n for n in old if new[n].wants_conv]
    flow = find_sources(model, wanting, example) if wanting else Flow()
    report = Conversion({n: type(layer).__name__ for n, layer in new.items()}, kept=kept)
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            release(module)
    for name in old:
        if isinstance(old[name], Normalizer):
            old[name].detach()
        _hand_over_parameters(old[name], new[name])
        if new[name].wants_conv:
            _attach(name, new[name], model, flow, report)
        _hand_over_statistics(name, old[name], new[name], report)
        model = _put(model, old[name], new[name])
    log.info("convert: %s", report)
    model.conversion = report
    return model


def choose(norm: str | Mapping | Build, names: list[str]) -> dict[str, Build]:
    """Map each module's name to the layer that the first matching rule, or else no rule, gives it.

    Raises:
        ValueError: A rule matches no module.
    """
    if callable(norm):
        return dict.fromkeys(names, norm)
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from normrepro.hints import load_choice

    config = OmegaConf.to_container(load_choice("norm", norm)) if isinstance(norm, str) else norm
    default = instantiate(config["layer"])
    chosen: dict[str, Build] = {}
    for rule in config.get("rules") or []:
        build = instantiate(rule["layer"])
        matches = [n for n in names if re.search(rule["match"], n)]
        if not matches:
            raise ValueError(
                f"norm.rules: {rule['match']!r} matches none of the model's norms, e.g. {names[:3]}"
            )
        every = rule.get("every") or 1
        for name in matches[every - 1 :: every]:
            chosen.setdefault(name, build)
    return {n: chosen.get(n, default) for n in names}


def _build(build: Build, old: nn.Module, group: int | None, replicas: int) -> Normalizer:
    given = getattr(build, "keywords", {})  # where the configuration is silent, as the old layer
    own = old.affine if isinstance(old, Normalizer) else old.weight is not None
    rest = {k: v for k, v in {"eps": old.eps, "affine": own}.items() if k not in given}
    layer = build(old.num_features, group=group, replicas=replicas, **rest)
    tensors = [t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()]
    if not tensors:
        return layer
    # Statistics of a half-precision model are kept in float32.
    return layer.to(tensors[0].device, torch.promote_types(tensors[0].dtype, torch.float32))


def _attach(name: str, new: Normalizer, model: nn.Module, flow: Flow, report: Conversion) -> None:
    """Tell a layer its convolutions, channel by channel where they are several."""
    sources = tuple(_of_convolutions(s, model) for s in flow.sources.get(name) or ())
    convs = [s.conv for s in sources if s.conv is not None]
    report.shared += sorted({c for c in convs if c in flow.elsewhere}.difference(report.shared))
    if not convs:
        report.unpaired.append(name)
    elif len(sources) == 1 and not sources[0].pooled:
        report.paired[name] = convs[0]
        new.attach(model.get_submodule(convs[0]))
    else:
        report.sliced[name] = sources
        start = 0
        for source in sources:
            channels, start = slice(start, start + source.channels), start + source.channels
            if source.conv is not None:
                new.attach(model.get_submodule(source.conv), channels, source.pooled)


def _of_convolutions(source: Source, model: nn.Module) -> Source:
    """Forget a transposed convolution: it is of use for folding only."""
    found = source.conv is not None and isinstance(model.get_submodule(source.conv), CONVOLUTIONS)
    return source if found else source._replace(conv=None, pooled=False)


def _hand_over_parameters(old: nn.Module, new: Normalizer) -> None:
    new.train(old.training)
    for key in ("weight", "bias"):
        if isinstance(getattr(new, key), Tensor):
            setattr(new, key, getattr(old, key, None))


def _hand_over_statistics(name: str, old: nn.Module, new: Normalizer, report: Conversion) -> None:
    found = population(old)
    if found is not None and dict(new.named_buffers()):
        kept = new.adopt(*found)
        (report.kept_statistics if kept else report.reset_statistics).append(name)


def population(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the running mean and variance (C) of a layer; None where it has none or never ran.

    MABN's chi^2 counts as the variance about a mean of zero, so evaluation stays what it was.
    """
    names = {n for n, b in norm.named_buffers(recurse=False) if b is not None}
    read = norm.eval_buffer if isinstance(norm, Normalizer) else norm.__getattr__
    if "running_var" in names:
        var = read("running_var")
    elif "running_std" in names:
        var = read("running_std").square() - norm.eps
    else:
        return None
    mean = read("running_mean") if "running_mean" in names else torch.zeros_like(var)
    if var.is_meta or (not mean.any() and any(torch.all((var - v).abs() < 1e-4) for v in (0, 1))):
        return None  # as it was made
    return mean, var


def _put(model: nn.Module, old: nn.Module, new: Normalizer) -> nn.Module:
    act = getattr(old, "act", None)
    if act is None:
        return replace(model, old, new)
    module = NormAct(new, getattr(old, "drop", nn.Identity()), act).train(old.training)
    return replace(model, old, module)

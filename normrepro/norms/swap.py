"""Put a normalizer in place of every batch norm of a model, without editing the model's code."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normrepro.norms.base import Normalizer
from normrepro.norms.pairing import default_example, find_pairs

log = logging.getLogger("normrepro")
Build = Callable[..., Normalizer]


@dataclass
class Conversion:
    """What `convert` did; the converted model carries it as `model.conversion`.

    Attributes:
        replaced: Module name -> class of its new layer.
        paired: Module name -> name of the convolution that feeds it.
        unpaired: Modules whose layer wanted a convolution and has none.
        kept_statistics: Modules whose running statistics went over.
        reset_statistics: Modules whose running statistics mean nothing in the new layer and start anew.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    paired: dict[str, str] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    kept_statistics: list[str] = field(default_factory=list)
    reset_statistics: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = sorted(set(self.replaced.values()))
        text = f"replaced {len(self.replaced)} batch norms by {', '.join(kinds)}"
        if self.paired or self.unpaired:
            text += f"; {len(self.paired)} know their convolution"
        if self.unpaired:
            text += f", {len(self.unpaired)} have none: {', '.join(self.unpaired)}"
        if self.reset_statistics:
            text += f"; running statistics of {len(self.reset_statistics)} start anew"
        return text


class NormAct(nn.Module):
    """A normalizer followed by dropout and activation: stands in for timm's fused BatchNormAct2d."""

    def __init__(self, norm: Normalizer, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the three in turn to x (N, C, H, W)."""
        return self.act(self.drop(self.norm(x)))


def convert(
    model: nn.Module,
    norm: str | Mapping | Build,
    group: int | None = None,
    replicas: int = 1,
    example: Any = None,
) -> nn.Module:
    """Replace every BatchNorm1d/2d/3d of a model (timm's fused norm+act layers included), in place.

    Trained weights stay (the same parameter objects), running statistics where they mean something in the new layer.

    Args:
        model: Any model, not yet wrapped by DistributedDataParallel.
        norm: A name from configs/norm (such as "mabn"), a mapping of the same form, or a callable that takes
            (channels, group=, replicas=, eps=, affine=) and returns a Normalizer.
        group: Images per set of statistics; None takes the whole batch of a replica.
        replicas: Devices of the protocol that this process stands for.
        example: A batch (or a tuple of arguments) for one traced forward, by which layers that need their
            convolution (MABN, CBN) find it; guessed from the model where it is None.

    Returns:
        The model, with `model.conversion` telling what was done.

    Raises:
        ValueError: No batch norm, an unknown name, or no example where one is needed and none can be guessed.
        TypeError: The model is wrapped by DistributedDataParallel.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError("convert the model first, then wrap it by DistributedDataParallel")
    names = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    if not names:
        raise ValueError("the model has no BatchNorm1d, BatchNorm2d or BatchNorm3d to replace")
    builds = choose(norm, names)
    old = {n: model.get_submodule(n) for n in names}
    new = {n: _build(builds[n], old[n], group, replicas) for n in names}
    report = Conversion({n: type(layer).__name__ for n, layer in new.items()})
    wanting = [n for n in names if new[n].wants_conv]
    pairs = _pairs(model, wanting, example) if wanting else {}
    for name in names:
        _hand_over(name, old[name], new[name], model, pairs.get(name), report)
        model = _put(model, name, old[name], new[name])
    report.unpaired = [n for n in wanting if n not in report.paired]
    log.info("convert: %s", report)
    model.conversion = report
    return model


def choose(norm: str | Mapping | Build, names: list[str]) -> dict[str, Build]:
    """Map each module's name to the layer that the configuration's rules give it; the first matching rule wins."""
    if callable(norm):
        return dict.fromkeys(names, norm)
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from normrepro.hints import load_choice

    config = OmegaConf.to_container(load_choice("norm", norm)) if isinstance(norm, str) else norm
    default = instantiate(config["layer"])
    chosen: dict[str, Build] = {}
    for rule in config.get("rules") or []:
        build, matches = instantiate(rule["layer"]), [n for n in names if re.search(rule["match"], n)]
        if not matches:
            raise ValueError(f"norm.rules: {rule['match']!r} matches none of the model's norms, e.g. {names[:3]}")
        every = rule.get("every") or 1
        for name in matches[every - 1 :: every]:
            chosen.setdefault(name, build)
    return {n: chosen.get(n, default) for n in names}


def _build(build: Build, old: _BatchNorm, group: int | None, replicas: int) -> Normalizer:
    given = getattr(build, "keywords", {})  # eps and affine are the old layer's where the configuration is silent
    rest = {k: getattr(old, k) for k in ("eps", "affine") if k not in given}
    layer = build(old.num_features, group=group, replicas=replicas, **rest)
    like = old.weight if old.affine else old.running_mean
    return layer if like is None else layer.to(like.device, like.dtype)


def _pairs(model: nn.Module, names: list[str], example: Any) -> dict[str, str | None]:
    try:
        return find_pairs(model, names, default_example(model) if example is None else example)
    except Exception as error:
        if example is not None:
            raise
        raise ValueError(
            "this normalizer needs the convolution before it, which one traced forward finds: "
            f"pass example=<a batch the model accepts> (a guessed one failed: {error})"
        ) from error


def _hand_over(
    name: str, old: _BatchNorm, new: Normalizer, model: nn.Module, conv: str | None, report: Conversion
) -> None:
    if old.affine:
        new.weight, new.bias = old.weight, old.bias
    new.train(old.training)
    if conv is not None:
        new.attach(model.get_submodule(conv))
        report.paired[name] = conv
    if old.running_mean is not None and old.num_batches_tracked != 0:
        kept = new.adopt(old.running_mean, old.running_var)
        (report.kept_statistics if kept else report.reset_statistics).append(name)


def _put(model: nn.Module, name: str, old: _BatchNorm, new: Normalizer) -> nn.Module:
    act = getattr(old, "act", None)
    module = new if act is None else NormAct(new, old.drop, act)
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    return model

"""What a conversion works on and what it reports: a model's norms, in the places they are used."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normrepro.norms.base import Normalizer
from normrepro.norms.flow import Source

OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _InstanceNorm)


@dataclass
class Conversion:
    """What `convert` did; the converted model carries it as `model.conversion`.

    Attributes:
        replaced: Module name -> class of its new layer.
        paired: Module name -> name of the convolution that feeds it.
        sliced: Module name -> where its channels come from, stretch by stretch, for layers fed by
            several convolutions (concatenation) or through average pooling; `conv` is None in
            stretches that come from no convolution.
        unpaired: Modules whose layer wanted a convolution and has none for any channel.
        shared: Convolutions told to a layer whose output goes elsewhere as well.
        kept: Other norms, left as they are: module name -> class.
        kept_statistics: Modules whose running statistics went over.
        reset_statistics: Modules whose running statistics mean nothing in the new layer and start
            anew.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    paired: dict[str, str] = field(default_factory=dict)
    sliced: dict[str, tuple[Source, ...]] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    kept_statistics: list[str] = field(default_factory=list)
    reset_statistics: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"replaced {len(self.replaced)} batch norms by {_kinds(self.replaced)}"
        if self.paired or self.sliced or self.unpaired:
            text += f"; {len(self.paired)} know their convolution"
        if self.sliced:
            text += f", {len(self.sliced)} the convolutions of their channels"
        if self.unpaired:
            text += f", {len(self.unpaired)} have none: {', '.join(self.unpaired)}"
        if self.shared:
            text += f"; the output of {len(self.shared)} convolutions goes elsewhere too"
        if self.reset_statistics:
            text += f"; running statistics of {len(self.reset_statistics)} start anew"
        if self.kept:
            text += f"; left as they are: {_kinds(self.kept)}"
        return text


def _kinds(classes: dict[str, str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(classes.values()).items()))


class NormAct(nn.Module):
    """A norm, dropout and activation: stands in for timm's fused BatchNormAct2d."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the three in turn to x (N, C, *)."""
        return self.act(self.drop(self.norm(x)))


def all_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's norms of every kind by name.

    What is inside of a norm is part of it; a norm within `NormAct` goes by the name of that.
    """
    norms: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        norm = module.norm if isinstance(module, NormAct) else module
        if module not in inside and is_norm(norm):
            inside |= set(module.modules())
            norms[name] = norm
    return norms


def find_norms(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return a model's batch norms and normalizers by name, and the classes of its other norms.

    Others are frozen, or split (timm's, several batch norms in one), or not over the batch.
    """
    norms, others = {}, {}
    for name, norm in all_norms(model).items():
        if isinstance(norm, Normalizer | _BatchNorm) and not hasattr(norm, "aux_bn"):
            norms[name] = norm
        else:
            others[name] = type(norm).__name__
    return norms, others


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm of torch, torchvision, timm or this package."""
    return is_frozen(module) or isinstance(module, (Normalizer, _BatchNorm, *OTHER_NORMS))


def is_frozen(module: nn.Module) -> bool:
    """Tell whether a module is torchvision's or timm's frozen batch norm.

    By name: importing either library takes seconds, and a model that holds one has done it.
    """
    names = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
    return any(kind.__name__ in names for kind in type(module).__mro__)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in place of another wherever a model uses it; returns the model."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
    return model

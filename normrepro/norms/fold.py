"""Fold norms that are affine at inference into the convolutions before them.

    scale (W x + b) + shift = (scale W) x + (scale b + shift),   scale and shift per output channel.
Average pooling between the two does no harm: it keeps a factor and a constant.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normrepro.norms.base import Normalizer
from normrepro.norms.centre import drop, effective_weight, has_other_hooks
from normrepro.norms.conversion import NormAct, all_norms, is_frozen, replace
from normrepro.norms.flow import Flow, Source
from normrepro.norms.pairing import CONVOLUTIONS, TRANSPOSED, find_sources

log = logging.getLogger("normrepro")
PLAIN = {kind.forward for kind in CONVOLUTIONS + TRANSPOSED}


@dataclass
class Folding:
    """What `fold` did; the model carries it as `model.folding`.

    Attributes:
        folded: Norm -> the convolutions that do its work now: one, or several for a concatenation.
        left: Norm -> why it stays.
    """

    folded: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"folded {len(self.folded)} norms into their convolutions"
        reasons = Counter(self.left.values())
        if reasons:
            text += f", left {len(self.left)}: " + "; ".join(f"{n} {r}" for r, n in reasons.items())
        return text


def fold(model: nn.Module, example: Any = None) -> nn.Module:
    """Fold every norm that is affine at inference into the convolution before it, in place.

    Weight and bias of the convolution become new parameters; a centred weight becomes a plain one.
    The norm's place is taken by nn.Identity (fused layers keep dropout and activation). A norm
    stays where it is not affine at inference, or not every channel that it takes in is a
    convolution's output, or something else takes that output in as well. For inference only.

    Args:
        model: A model in evaluation mode, converted or not: torch's batch norms and frozen batch
            norms fold as well.
        example: As for `convert`: what the model takes in, for the run that shows which
            convolution feeds which norm; guessed where it is None.

    Returns:
        The model, with `model.folding` telling what was done.

    Raises:
        ValueError: The model or one of its norms is in training mode, or no example can be guessed.
    """
    norms = all_norms(model)
    if model.training or any(norm.training for norm in norms.values()):
        raise ValueError("fold works on a model in evaluation mode: call model.eval() first")
    report = Folding()
    flow = find_sources(model, norms, example, training=False) if norms else Flow()
    for name, norm in norms.items():
        reason = _obstacle(name, norm, flow) or _fold(model, norm, flow.sources[name])
        if reason is None:
            report.folded[name] = [s.conv for s in flow.sources[name]]
            model = _remove(model, norm)
        else:
            report.left[name] = reason
    log.info("fold: %s", report)
    model.folding = report
    return model


def affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return (scale, shift), both (C), of a layer that is affine at inference, else None."""
    if isinstance(norm, Normalizer):
        return norm.inference_affine() if norm.linear else None
    if not (is_frozen(norm) or isinstance(norm, _BatchNorm)) or norm.running_var is None:
        return None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _obstacle(name: str, norm: nn.Module, flow: Flow) -> str | None:
    """Say why a norm cannot be folded, None if it can."""
    if affine(norm) is None:
        return "not affine at inference"
    if name not in flow.sources:
        return "not run by the example"
    convs = [source.conv for source in flow.sources[name] or ()]
    if not convs or None in convs:
        return "not fed by convolutions alone"
    shared = any(c in flow.elsewhere or flow.feeds[c] != {name} for c in convs)
    if shared or len(set(convs)) < len(convs):
        return "fed by a convolution that feeds others too"
    return None


@torch.no_grad()
def _fold(model: nn.Module, norm: nn.Module, sources: Sequence[Source]) -> str | None:
    """Fold; returns why not, where a convolution does not compute with its weight as it is."""
    if isinstance(norm, Normalizer):
        norm.detach()
    convs = [model.get_submodule(source.conv) for source in sources]
    before = [(conv, conv._parameters.get("weight"), conv.bias) for conv in convs]
    parts = [v.double().split([s.channels for s in sources]) for v in affine(norm)]
    if not all(_multiply(*args) for args in zip(convs, *parts, strict=True)):
        for conv, weight, bias in before:
            if weight is not None:
                conv.weight, conv.bias = weight, bias
        return "fed by a convolution that does not compute with its weight as it is"
    for conv in convs:
        drop(conv)
    return None


def _multiply(conv: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """Make a convolution put out scale times its output plus shift; False where that fails."""
    if "weight" not in conv._parameters or has_other_hooks(conv):
        return False
    weight, bias = conv.weight, conv.bias
    x = None if type(conv).forward in PLAIN else _probe(conv)
    before = None if x is None else conv(x)
    moved = shift if bias is None else shift + scale * bias
    folded = _scaled(conv, effective_weight(conv).double(), scale)
    conv.weight = nn.Parameter(folded.to(weight.dtype), weight.requires_grad)
    conv.bias = nn.Parameter(moved.to(weight.dtype), weight.requires_grad)
    return x is None or _agree(conv(x), before, scale, shift)


def _scaled(conv: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply each output filter by its factor."""
    if not getattr(conv, "transposed", False):
        return weight * scale.view(-1, *(1,) * (weight.dim() - 1))
    grouped = weight.unflatten(0, (conv.groups, -1))  # (groups, in / groups, out / groups, *)
    factor = scale.view(conv.groups, 1, -1, *(1,) * (weight.dim() - 2))
    return (grouped * factor).flatten(0, 1)


def _probe(conv: nn.Module) -> Tensor:
    """Make an input for a convolution whose class has a forward of its own."""
    shape = [conv.in_features if isinstance(conv, nn.Linear) else conv.in_channels]
    if hasattr(conv, "kernel_size"):
        shape += [1 + d * k for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(conv.weight)


def _agree(after: Tensor, before: Tensor, scale: Tensor, shift: Tensor) -> bool:
    shape = (1, -1) + (1,) * (before.dim() - 2)
    wanted = before.double() * scale.view(shape) + shift.view(shape)
    slack = 100 * torch.finfo(before.dtype).eps * wanted.abs().max()
    return bool((after - wanted).abs().max() <= slack)


def _remove(model: nn.Module, norm: nn.Module) -> nn.Module:
    act = getattr(norm, "act", None)
    if act is None:
        return replace(model, norm, nn.Identity())
    rest = NormAct(nn.Identity(), getattr(norm, "drop", nn.Identity()), act)
    return replace(model, norm, rest.eval())

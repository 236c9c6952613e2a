"""Weight centralization (MABN eq. 18): a convolution that subtracts from each filter its mean.

Two hooks on the convolution put W - mean(W) in place of its weight during its forward, so the
module keeps its class, its parameters and its state_dict, and gradients flow through the
subtraction.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from normrepro.norms import core, eager

ROUNDING = 1e-5  # mean of a filter, in units of its largest weight, that counts as zero


def centred(weight: Tensor) -> Tensor:
    """Subtract from each output filter its mean over (in / groups, kernel).

    Args:
        weight: (out, in / groups, *).
    """
    if torch.compiler.is_compiling():
        return eager.centre(weight)  # which a compiler sees through
    return core.Centre.apply(weight)


def is_centred(conv: nn.Module) -> bool:
    """Tell whether a module centres its weight."""
    return _enter in conv._forward_pre_hooks.values()


def centre(conv: nn.Module) -> bool:
    """Make a convolution or linear layer centre its weight.

    Left alone are filters of a single weight (1x1 depthwise), which would become zero, and
    transposed convolutions, which keep their filters elsewhere.

    Args:
        conv: The module.

    Returns:
        Whether its output is another one from now on: the filters' means were not zero already.
    """
    weight = getattr(conv, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or math.prod(weight.shape[1:]) == 1:
        return False
    if getattr(conv, "transposed", False):
        return False
    if not is_centred(conv):
        conv.register_forward_pre_hook(_enter)
        conv.register_forward_hook(_leave, always_call=True)
    return weight.is_meta or _has_means(weight.detach())


def _has_means(weight: Tensor) -> bool:
    weight = weight.flatten(1)
    return bool((weight.mean(1).abs() > ROUNDING * weight.abs().amax(1)).any())


def _enter(conv: nn.Module, args: Any) -> None:
    # An instance attribute is found before the parameter of the same name.
    conv.__dict__["weight"] = centred(conv._parameters["weight"])


def _leave(conv: nn.Module, args: Any, output: Any) -> None:
    conv.__dict__.pop("weight", None)


def has_other_hooks(conv: nn.Module) -> bool:
    """Tell whether a module has forward hooks besides those of `centre`."""
    hooks = [*conv._forward_pre_hooks.values(), *conv._forward_hooks.values()]
    return any(hook not in (_enter, _leave) for hook in hooks)


def effective_weight(conv: nn.Module) -> Tensor:
    """Return the weight that the module computes with, outside of its forward."""
    return centred(conv.weight) if is_centred(conv) else conv.weight


@torch.no_grad()
def release(conv: nn.Module) -> None:
    """Write the centred weight into the parameter and take the hooks off: the output stays."""
    if is_centred(conv):
        conv.weight.copy_(centred(conv.weight))
        drop(conv)


def drop(conv: nn.Module) -> None:
    """Take the hooks off."""
    for hooks, hook in ((conv._forward_pre_hooks, _enter), (conv._forward_hooks, _leave)):
        for key in [k for k, h in hooks.items() if h is hook]:
            del hooks[key]
            conv._forward_hooks_always_called.pop(key, None)

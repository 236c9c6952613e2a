"""Parameter groups, the optimizer, and the learning rate as a pure function of progress."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from normrepro.config import ConfigError

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.PReLU)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module's own parameters are a gamma, a beta or both."""
    own = dict(module.named_parameters(recurse=False))
    vectors = all(parameter.ndim == 1 for parameter in own.values())
    return (
        bool(own)
        and set(own) <= {"weight", "bias"}
        and vectors
        and not isinstance(module, WEIGHTED)
    )


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_norms: bool = True
) -> list[dict[str, Any]]:
    """Sort trainable parameters into optimizer groups.

    Args:
        model: The model with its norms already swapped.
        weight_decay: Decay of the weights.
        decay_norms: Whether gamma and beta decay as well, as in the MABN and CBN papers.

    Returns:
        One group, or two where the norms do not decay; each holds its parameters in model order.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    if decay_norms:
        norms = set()
    groups = [
        {"params": [p for p in trainable if id(p) not in norms], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in norms], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build(model: nn.Module, optimizer: "partial[Optimizer]", decay_norms: bool = True) -> Optimizer:
    """Build the optimizer of a recipe over a model's parameter groups.

    Args:
        model: The model with its norms already swapped.
        optimizer: Optimizer class with its options bound, as Hydra makes it of `recipe.optimizer`.
        decay_norms: Whether gamma and beta decay like weights.
    """
    weight_decay = optimizer.keywords.get("weight_decay", 0.0)
    return optimizer(parameter_groups(model, weight_decay, decay_norms))


def lr_factor(step: int, total: int, schedule: Mapping[str, Any], warmup: float = 0.0) -> float:
    """Return the factor on the base learning rate at an optimizer step.

    Args:
        step: Steps already taken, 0 to total - 1.
        total: Steps of the whole run.
        schedule: {"name": "step", "at": fractions of the run, "factor": f} or {"name": "cosine"}.
        warmup: Fraction of the run over which the rate rises linearly; it multiplies the schedule.
    """
    rise = min(1.0, (step + 1) / (warmup * total)) if warmup > 0 else 1.0
    name = schedule.get("name")
    if name == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * step / total))
    if name == "step":
        # Rounded, so that 1/3 of 300 steps is step 100 whatever the last bit of 1/3 is.
        drops = sum(step >= round(fraction * total) for fraction in schedule["at"])
        return rise * schedule["factor"] ** drops
    raise ConfigError(f"recipe.schedule.name={name} is unknown: choose step or cosine")


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Set every group's learning rate to its initial one times `factor`; return the first."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return optimizer.param_groups[0]["lr"]

"""EvalNorm on a trained model: evaluation by several rules, and offline estimation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normrepro.norms.evalnorm import RULES, EvalNorm
from normrepro.norms.steps import step


@contextmanager
def evaluation_rule(model: nn.Module, rule: str | None) -> Iterator[None]:
    """Evaluate a model's EvalNorm layers by a rule, so that one training gives several metrics.

    Args:
        model: Any model.
        rule: One of `RULES`, such as "1/B^2"; None takes each layer's alpha and beta.

    Raises:
        ValueError: Unknown rule.
    """
    if rule is not None and rule not in RULES:
        raise ValueError(f"rule={rule!r} must be one of {[*RULES]}, or None")
    layers = list(_layers(model).values())
    before = [layer.rule for layer in layers]
    for layer in layers:
        layer.rule = rule
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.rule = old


def fit_evalnorm(
    model: nn.Module, batches: Iterable[Any], epochs: int = 1, lr: float = 0.1
) -> dict[str, tuple[float, float]]:
    """Estimate alpha and beta of a trained model offline (EvalNorm, section 3.4).

    EvalNorm layers normalize by groups as in training, everything else is in evaluation mode;
    parameters and running statistics stay. Each batch is a step of plain SGD on each layer's loss.

    Args:
        model: A model with EvalNorm layers; a state_dict of BatchNorm layers fits them.
        batches: Training batches: x, or sequences that begin with x; iterated once per epoch.
        epochs: Passes.
        lr: Step length in the first epoch; it falls linearly, to lr / epochs in the last.

    Returns:
        Layer's name -> (alpha, beta), which the layers hold too.

    Raises:
        ValueError: The model has no EvalNorm.
    """
    layers = _layers(model)
    if not layers:
        raise ValueError("no EvalNorm in the model: convert(model, norm='evalnorm', group=B)")
    device = next(iter(layers.values())).alpha.device
    with _fitting(model, layers), torch.no_grad():
        for epoch in range(epochs):
            for layer in layers.values():
                layer.lr = lr * (1 - epoch / epochs)
            for batch in batches:
                x = batch if isinstance(batch, Tensor) else batch[0]
                with step(model):
                    model(x.to(device))
    return {name: (float(m.alpha), float(m.beta)) for name, m in layers.items()}


def _layers(model: nn.Module) -> dict[str, EvalNorm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, EvalNorm)}


@contextmanager
def _fitting(model: nn.Module, layers: dict[str, EvalNorm]) -> Iterator[None]:
    """Start alpha and beta anew and let them, and nothing else, learn."""
    modes, rates = {m: m.training for m in model.modules()}, [m.lr for m in layers.values()]
    model.eval()
    for layer in layers.values():
        layer.train()
        layer.fitting = True
        layer.restart()
    try:
        yield
    finally:
        for layer, rate in zip(layers.values(), rates, strict=True):
            layer.fitting, layer.lr = False, rate
        for module, mode in modes.items():
            module.training = mode

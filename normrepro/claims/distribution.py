"""Distributions of outputs at training and at evaluation (EvalNorm, Figure 1)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.fitting import fields


def outputs(size: int, within: float, between: float) -> tuple[Tensor, norms.EvalNorm, Tensor]:
    """Return training outputs of fields, and the layer and its inputs for evaluation."""
    x = fields(8_000 // size * size, within, between)
    layer = norms.EvalNorm(
        4, group=size, momentum=1.0, affine=False, method="fixed", unbiased=False
    )
    layer = layer.double()
    with norms.step(layer):
        targets = layer(x)
    return targets, layer.eval(), x


@check
def mismatch_of_ema() -> Mapping[str, float]:
    """The variance of outputs by EMA over the formula's, and that of training outputs."""
    found = {}
    for size in (2, 8):
        targets, layer, x = outputs(size, 1.0, 1.0)
        with norms.evaluation_rule(layer, "ema"):
            var = float(layer(x).var())
        found[f"training_at_B_{size}"] = float(targets.var())
        found[f"EMA_at_B_{size}"] = var
        # the mean of an image of 16 pixels varies by 1 (between) + 1/16 (within)
        formula = 2 / (2 - (1 + 1 / 16) / size)
        found[f"EMA_over_formula_at_B_{size}"] = var / formula
    return found


@check
def dispersion() -> Mapping[str, float]:
    """Deviation of outputs by each rule, and how far their distribution is from training."""
    found = {}
    targets, layer, x = outputs(2, 1.0, 1.0)
    for rule, name in {"ema": "EMA", "1/B": "1/B", "1/B^2": "1/B^2"}.items():
        with norms.evaluation_rule(layer, rule):
            y = layer(x)
        found[f"deviation_{name}"] = float(y.std())
        found[f"distance_{name}"] = kolmogorov(y.flatten(), targets.flatten())
    return found


def kolmogorov(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two empirical distributions, on 4001 points."""
    at = torch.linspace(-4, 4, 4001, dtype=one.dtype)
    found = [torch.searchsorted(v.sort().values, at, right=True) / len(v) for v in (one, other)]
    return float((found[0] - found[1]).abs().max())

"""EvalNorm's fitted alpha and beta: nearer to training than the rules, and how they fall with B."""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import draw

SIZES = (2, 4, 8, 32)
RULES = ("ema", "1/B", "1/B^2")


def fields(images: int = 512, within: float = 1.0, between: float = 0.5) -> Tensor:
    """Draw images of independent channels: noise of two deviations, per pixel and per image."""
    return within * draw(images, 4, 16) + between * draw(images, 4, 1, seed=1)


@cache
def fitted(size: int) -> tuple[float, float, Mapping[str, float]]:
    """Return alpha and beta fitted to the fields, and the mean |EN - training| by rule."""
    x = fields()
    layer = norms.EvalNorm(4, group=size, momentum=1.0, affine=False, unbiased=False).double()
    with norms.step(layer):
        targets = layer(x)
    norms.fit_evalnorm(layer, [x], epochs=60, lr=1.0)
    layer.eval()
    losses = {}
    for rule in (None, *RULES):
        with norms.evaluation_rule(layer, rule):
            losses[rule or "EN"] = float((layer(x) - targets).abs().mean())
    return float(layer.alpha), float(layer.beta), losses


@check
def fitted_distance() -> Mapping[str, float]:
    """Mean |EN - training| of the fitted layer beside the rules; what EN gains over EMA by B."""
    losses = {size: fitted(size)[2] for size in SIZES}
    gains = [losses[size]["ema"] - losses[size]["EN"] for size in SIZES]
    return {
        "EN_at_B_2": losses[2]["EN"],
        "EMA_at_B_2": losses[2]["ema"],
        "EN_over_the_best_rule": max(v["EN"] / min(v[r] for r in RULES) for v in losses.values()),
        "smallest_gain": min(gains),
        "largest_rise_of_the_gain": max(b - a for a, b in pairwise(gains)),
    }


@check
def optimum_of_one_layer() -> Mapping[str, float]:
    """Alpha and beta of one layer with independent inputs, beside 1/B and 1/B^2."""
    found = {}
    for size in (2, 4):
        found[f"alpha_at_B_{size}"], found[f"beta_at_B_{size}"], losses = fitted(size)
        found[f"loss_of_1/B_over_1/B^2_at_B_{size}"] = losses["1/B"] / losses["1/B^2"]
    return found


@check
def falling_with_batch() -> Mapping[str, float]:
    """Alpha and beta at B = 2, 4, 8, 32."""
    found = {f"alpha_at_B_{size}": fitted(size)[0] for size in SIZES}
    pairs = torch.tensor([fitted(size)[:2] for size in SIZES])
    return found | {"largest_rise_with_B": float(pairs.diff(dim=0).max())}

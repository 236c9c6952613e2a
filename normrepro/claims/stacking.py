"""Running averages and how wrong ones multiply over stacked layers (XBNBlock, sections 3 and 4)."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import draw, error


@check
def running_average() -> Mapping[str, float]:
    """(3) on one batch again and again: the mean's error falls by 1 - alpha = 0.1 per step."""
    layer, x = norms.BatchNorm(6, momentum=0.9).double(), draw(50, 6, shift=2.0)
    gaps = [(layer.running_mean - x.mean(0)).clone()]
    for _ in range(6):
        layer(x)
        gaps.append((layer.running_mean - x.mean(0)).clone())
    worst = max(error(b, 0.1 * a) for a, b in pairwise(gaps[:6]))
    return {"off_0.1_per_step": worst}


@check
def shift_at_rest() -> Mapping[str, float]:
    """ESM after 60 steps on one set: of the mean, and of the deviation by both variances."""
    n = 50
    layer, x = norms.BatchNorm(6, momentum=0.9).double(), draw(n, 6)
    for _ in range(60):
        layer(x)
    sigma = x.std(0, correction=0)
    found = float((layer.running_var.sqrt() - sigma).norm())
    wanted = float(((n / (n - 1)) ** 0.5 - 1) * sigma.norm())
    biased = norms.EvalNorm(6, momentum=0.9, unbiased=False, method="fixed").double()
    for _ in range(60):
        biased(x)
    return {
        "ESM_mean": float((layer.running_mean - x.mean(0)).norm()),
        "ESM_std_unbiased": found,
        "off_the_formula": abs(found / wanted - 1),
        "ESM_std_biased": float((biased.running_var.sqrt() - sigma).norm()),
    }


@check
def accumulation() -> Mapping[str, float]:
    """A chain of 6 BN, their deviations at evaluation wrong by 1 + delta; then with an LN."""
    x, deltas = draw(200, 8), 0.3 * draw(6, seed=1)
    found = {}
    for name, blocked in {"chain": False, "with_LN": True}.items():
        right, wrong = x, x
        for place, delta in enumerate(deltas):
            layer = norms.BatchNorm(8, eps=0, affine=False).double().eval()
            layer.running_mean.copy_(right.mean(0))
            for factor in (1, 1 + delta):  # what training left behind, then the wrong estimate
                layer.running_var.copy_(right.var(0, correction=0) * factor**2)
                if factor == 1:
                    straight = layer(right)
            right, wrong = straight, layer(wrong)
            right, wrong = right - right.mean(0), wrong - wrong.mean(0)
            if blocked and place == 2:
                right, wrong = (nn.functional.layer_norm(v, (8,), eps=0) for v in (right, wrong))
        tail = deltas[3:] if blocked else deltas
        found[name] = error(wrong * (1 + tail).prod(), right)
    return found | {
        "product_of_6": float((1 + deltas).prod()),
        "of_the_last_3": float((1 + tail).prod()),
    }


@check
def batch_statistics_in_both_modes() -> Mapping[str, float]:
    """Outputs of a stack that normalizes the same set by its own statistics twice."""
    torch.manual_seed(0)
    parts = [m for _ in range(4) for m in (nn.Linear(8, 8), norms.BatchNorm(8), nn.ReLU())]
    net, x = nn.Sequential(*parts).double(), draw(50, 8)
    with torch.no_grad():
        first, second = net(x), net(x)
        by_averages = net.eval()(x)
    return {
        "by_batch_statistics": float((first - second).abs().max()),
        "by_running_averages": error(by_averages, first),
    }

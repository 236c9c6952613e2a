"""Variances: MABN's Theorem 2 under its assumptions and without one, and statistics by batch."""

from collections.abc import Mapping

import torch

from normrepro.claims import check
from normrepro.claims.tools import draw

DRAWS = 1_000_000


def gap(size: int, shift: float = 0.0, draws: int = DRAWS) -> float:
    """Return Var[vanilla] - Var[modified] at sigma^ = 1, mu^ = shift, (g, Psi) drawn apart."""
    dy, y, g, psi = (draw(draws, seed=s) for s in range(4))
    g, psi = g / size**0.5, psi / size**0.5
    rest = dy - y * psi
    return float((rest - g).var() - rest.var() / (1 + shift**2))


@check
def theorem_2() -> Mapping[str, float]:
    """The gap beside Var[g]: equal at mu^ = 0, larger by (1 - 1/chi^2) Var[dy - y Psi] at 0.5."""
    found = {"largest_difference_at_mean_0": 0.0}
    for size in (2, 4, 8, 32):
        at_zero = abs(gap(size) - 1 / size)
        found["largest_difference_at_mean_0"] = max(at_zero, *found.values())
    for size in (2, 32):
        found[f"excess_at_mean_0.5_and_B_{size}"] = gap(size, 0.5) - 1 / size
    return found


@check
def gap_by_batch() -> Mapping[str, float]:
    """The advantage of the modified form at B = 32 beside B = 2."""
    return {"gap_32_over_gap_2": gap(32, draws=2 * DRAWS) / gap(2, draws=2 * DRAWS)}


@check
def own_batch() -> Mapping[str, float]:
    """The sample belongs to its batch, as it does in training: assumption 2 fails."""
    size = 4
    dy, y = draw(200_000, size), draw(200_000, size, seed=1)
    g, psi = dy.mean(1, keepdim=True), (dy * y).mean(1, keepdim=True)
    return {
        "Cov_dy_g_times_B": float((dy * g).mean()) * size,
        "vanilla": float((dy - g - y * psi).var()),
        "modified": float((dy - y * psi).var()),
    }


@check
def norms_of_statistics() -> Mapping[str, float]:
    """l2 norms of statistics of 2 beside those of 32, with and without a mean."""
    x = draw(32, 40_000)
    found = {}
    for shift in (0.0, 0.1, 1.0):
        small, large = (x[:2] + shift).mean(0).norm(), (x + shift).mean(0).norm()
        found[f"ratio_at_mean_{shift:g}"] = float(small / large)
    return found


@check
def variance_by_batch() -> Mapping[str, float]:
    """The slope of log Var of a batch mean against log B."""
    x = draw(64, 20_000)
    sizes = torch.tensor([2, 4, 8, 16, 32, 64])
    logs = torch.stack([x[:b].mean(0).var().log() for b in sizes])
    at = sizes.double().log()
    at, logs = at - at.mean(), logs - logs.mean()
    return {"slope": float((at * logs).sum() / at.square().sum())}

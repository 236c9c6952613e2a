"""Moving averages: MABN's Theorem 1, what it says of EMAS and SMAS, and how they lag."""

from collections.abc import Mapping

import torch

from normrepro.claims import check
from normrepro.claims.tools import draw, error
from normrepro.norms.base import move
from normrepro.norms.window import push, slide

MEMORY = 16  # m of MABN's experiments with groups of 2


def emas_variance(alpha: float, t: float = float("inf")) -> float:
    """Return Var E_t / Var xi by Theorem 1."""
    return (1 - alpha ** (2 * t)) * (1 - alpha) / (1 + alpha)


@check
def theorem_1() -> Mapping[str, float]:
    """The variance of an exponential moving average: closed sum, and chains."""
    worst = 0.0
    for alpha in (0.9, 0.98):
        for t in (1, 10, 100, 1000):
            total = sum(((1 - alpha) * alpha**i) ** 2 for i in range(t))
            worst = max(worst, abs(total / emas_variance(alpha, t) - 1))
    chains = 100_000
    state = torch.zeros(1, chains, dtype=torch.float64)
    for t in range(20):
        move(state, draw(1, chains, seed=t), 0.1)
    found, wanted = float(state.var()), emas_variance(0.9, 20)
    return {
        "closed_sum": worst,
        "chains_in_standard_errors": abs(found / wanted - 1) / (2 / chains) ** 0.5,
        "limit_at_0.9": emas_variance(0.9),
        "limit_at_0.98": emas_variance(0.98),
    }


@check
def window_variance() -> Mapping[str, float]:
    """The variance of a mean over 16 batches, taken by the layers' own window."""
    chains = 50_000
    window = torch.zeros(1, MEMORY, chains, dtype=torch.float64)
    for t in range(MEMORY - 1):
        window = push(window, draw(1, 1, chains, seed=t))
    count = torch.tensor(MEMORY - 1)
    found = float(slide(window, count, draw(1, 1, chains, seed=99)).var())
    return {
        "variance": found,
        "off_in_standard_errors": abs(found * MEMORY - 1) / (2 / chains) ** 0.5,
    }


@check
def emas_below_smas() -> Mapping[str, float]:
    """Where EMAS has the lower variance: above the crossover, not below."""
    return {
        "EMAS_at_0.9": emas_variance(0.9),
        "EMAS_at_0.98": emas_variance(0.98),
        "SMAS_at_16": 1 / MEMORY,
        "crossover": (MEMORY - 1) / (MEMORY + 1),
        "EMAS_over_SMAS_at_the_crossover": emas_variance((MEMORY - 1) / (MEMORY + 1)) * MEMORY,
    }


@check
def lags() -> Mapping[str, float]:
    """How far each average is behind a ramp that rises by 1 per step."""
    found = {}
    for alpha in (0.9, 0.98):
        state = torch.zeros(1, 1, dtype=torch.float64)
        for t in range(2000):
            move(state, torch.full_like(state, t), 1 - alpha)
        found[f"EMAS_at_{alpha}"] = 1999 - float(state)
    window = torch.zeros(1, MEMORY, 1, dtype=torch.float64)
    for t in range(100):
        window = push(window, torch.full((1, 1, 1), t, dtype=torch.float64))
    found["SMAS_at_16"] = 99 - float(window.mean())
    return found


@check
def window_of_pairs() -> Mapping[str, float]:
    """16 groups of 2 for a batch of 32: chi^2, and Psi by a common or each group's own chi."""
    x = draw(4000, 32)
    gy = (2 * x).sin()
    pairs, gpairs = x.view(-1, 16, 2), gy.view(-1, 16, 2)
    square = x.square().mean(1)
    chi = square.sqrt()
    whole = (x * gy).mean(1) / chi
    common = ((pairs * gpairs).mean(2) / chi[:, None]).mean(1)
    own = ((pairs * gpairs).mean(2) / pairs.square().mean(2).sqrt()).mean(1)
    longer = own.view(-1, 4).mean(1)
    return {
        "chi2_of_the_window": error(pairs.square().mean(2).mean(1), square),
        "Psi_with_a_common_chi": error(common, whole),
        "mean_Psi_of_32": float(whole.mean()),
        "mean_Psi_of_16_groups_with_own_chi": float(own.mean()),
        "of_64_groups": float(longer.mean()),
    }

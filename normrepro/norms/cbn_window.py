"""The window of CBN: its length, its beginning, and joint statistics (CBN eqs. 9 to 11)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normrepro.norms.arguments import integer, number

EXAMPLES, LONGEST = 16, 8  # of the paper's rule for k (section 4.3)


def check_options(variant: str, window: int | None, order: int, burn_in: float) -> None:
    """Check CBN's options.

    Raises:
        ValueError: One of them is none, or they do not go together.
    """
    if variant not in ("paper", "official"):
        raise ValueError(f"variant={variant!r} must be paper or official")
    if order not in (0, 1, 2) or (order == 2 and variant == "official"):
        raise ValueError(f"order={order} must be 0, 1 or (variant='paper' only) 2")
    integer(window=1 if window is None else window)  # None: the paper's rule
    number(0, burn_in=burn_in)
    if burn_in >= 1 and burn_in % 1:
        raise ValueError(f"burn_in={burn_in} must be a number of steps, or a fraction below 1")


def usual_length(group: int) -> int:
    """Return k = min(ceil(16 / B), 8), the paper's choice for groups of B images."""
    return min(-(-EXAMPLES // group), LONGEST)


def burn_in_steps(burn_in: float, run_length: int | None) -> int:
    """Return the steps before the window opens.

    Args:
        burn_in: Steps; or, below 1, a fraction of the run.
        run_length: Steps of the run, where they are known.

    Raises:
        ValueError: A fraction of a run of unknown length.
    """
    if not 0 < burn_in < 1:
        return int(burn_in)
    if run_length is None:
        raise ValueError(
            f"burn_in={burn_in} is a fraction of the run, whose length is unknown: set "
            "layer.run_length to its steps, or burn_in to steps (norm.layer.burn_in)"
        )
    return round(burn_in * run_length)


def join(
    past: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    k: int,
    covered: Tensor | None = None,
    drop: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Join each group's statistics with those of the k - 1 groups before it, or of those there are.

    With v = nu - mu^2, eqs. 10 and 11 are var = mean max(v, 0) + Var(mu) over the entries, without
    the cancellation in nubar - mubar^2. Entries that are not finite do not count.

    Args:
        past: mu and v (R, n, C) of earlier entries under the present weights, oldest first.
        own: mu and v (R, G, C) of the groups at hand, in time order.
        k: Length of the window.
        covered: Which channels (C) have a window at all; None means all.
        drop: Leave entries with v < 0 out (released code) instead of raising v to 0.

    Returns:
        Mean, variance, and the weight of a group's own entry in them, each (R, G, C).
    """
    gap = (0, 0, k - 1 - past[0].shape[1], 0)
    mu, v = (
        F.pad(torch.cat(pair, 1), gap, value=float("nan")).unfold(1, k, 1)  # (R, G, C, k)
        for pair in zip(past, own, strict=True)
    )
    counts = mu.isfinite() & v.isfinite()
    if drop:
        counts &= v >= 0
    if covered is not None:
        counts &= covered.unsqueeze(-1)
    counts[..., -1] = True
    share = 1 / counts.sum(-1, keepdim=True).to(mu.dtype)
    center = torch.where(counts, mu, 0).sum(-1, keepdim=True) * share
    spread = torch.where(counts, v.clamp(min=0) + (mu - center).square(), 0)
    share = share.squeeze(-1)
    return center.squeeze(-1), spread.sum(-1) * share, share

"""Whether a number of the paper was reproduced; asked only where the protocol is the paper's."""

import math
import statistics

from normrepro import reported
from normrepro.report.entries import DIVERGED, EMPTY, Entry

LEAST = 3  # seeds
ASSUMED = 0.3  # points, in the place of a standard deviation that the paper does not give
ROUNDING = 1e-9  # 70.2 - 70.0 is a little more than 0.2
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
RULE = (
    "A value counts as reproduced where |difference| <= 2 sqrt(s² / n + p²): s is the standard "
    f"deviation over n >= {LEAST} seeds, p the paper's own; where the paper gives none, p is "
    "assumed, as the cell says."
)


def difference(entry: Entry) -> str:
    """Return our mean minus the paper's value."""
    paper = reported.value(entry.paper)
    if paper is None or entry.mean is None:
        return EMPTY
    return entry.number(entry.mean - paper, "+")


def verdict(entry: Entry, tolerance: float | None) -> str:
    """Return the verdict on an entry.

    Args:
        entry: The entry.
        tolerance: Points that stand in where the paper gives no standard deviation.
    """
    if entry.paper is None:
        return ""
    if not entry.records:
        return "not run"
    if len(entry.records) < LEAST:
        return f"too few seeds (n = {len(entry.records)})"
    if entry.paper == DIVERGED:
        return REPRODUCED if len(entry.diverged) == len(entry.records) else NOT_REPRODUCED
    if len(entry.values) < len(entry.records):
        return f"{NOT_REPRODUCED} ({len(entry.diverged)} diverged)"
    return _judged(entry, tolerance)


def _judged(entry: Entry, tolerance: float | None) -> str:
    """Compare the means, with the limit that follows from both spreads."""
    own, given = list(entry.values.values()), reported.spread(entry.paper)
    assumed = tolerance if tolerance is not None else ASSUMED if entry.unit == "%" else None
    if given is None and assumed is None:
        return "no spread to judge by"
    paper = given if given is not None else assumed
    limit = 2 * math.sqrt(statistics.variance(own) / len(own) + paper**2)
    gap = abs(statistics.fmean(own) - reported.value(entry.paper))
    source = "" if given is not None else f", p = {paper:g} assumed"
    word = REPRODUCED if gap <= limit + ROUNDING else NOT_REPRODUCED
    return f"{word} (limit {entry.number(limit)}{source})"

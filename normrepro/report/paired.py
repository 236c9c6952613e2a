"""Tests between entries whose seeds are paired: the same seed is the same data, order and start."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from normrepro.blocks import Grid
from normrepro.report.entries import EMPTY, Entries, Entry
from normrepro.report.ranking import Group, groups
from normrepro.tables import Table

LEAST = 3  # seeds; with fewer nothing is said to be significant
ABOUT = (
    "Differences seed by seed, each against the reference of its group. Sign test: exact, "
    "two-sided, a diverged run counts as lost. t: paired, two-sided, without diverged runs. The "
    "p values are not corrected for the number of comparisons; with fewer than "
    f"{LEAST} seeds none is given."
)
HEAD = ["", "against", "n", "mean Δ", "better in", "p (sign test)", "p (paired t)"]


@dataclass(frozen=True)
class Pair:
    """Two entries of one group; the other is the reference."""

    label: str
    own: Entry
    against: str
    other: Entry

    @property
    def seeds(self) -> list[int]:
        """The seeds that both have a run of."""
        return sorted(set(self.own.records) & set(self.other.records))

    @property
    def differences(self) -> list[float]:
        """Ours minus the reference's, by seed, where both have a number."""
        own, other = self.own.values, self.other.values
        return [own[seed] - other[seed] for seed in self.seeds if seed in own and seed in other]

    @property
    def losses(self) -> list[float]:
        """The same by every seed, above zero is worse; a lost run is infinitely bad."""
        return [_loss(self.own, seed, other=self.other) for seed in self.seeds]


def _loss(own: Entry, seed: int, other: Entry) -> float:
    """Return how much worse an entry is at a seed; two lost runs are equal."""
    there, here = seed in other.values, seed in own.values
    if there and here:
        return own.loss(own.values[seed]) - own.loss(other.values[seed])
    return 0.0 if there == here else float("inf") if there else -float("inf")


def table_of(table: Table, every: Entries) -> Grid | None:
    """Return the tests of all groups, None where no seeds are paired."""
    rows = [
        _row(group, pair)
        for group in groups(table, every)
        for pair in pairs(table, group)
        if len(pair.seeds) > 1
    ]
    return Grid(HEAD, rows) if rows else None


def pairs(table: Table, group: Group) -> list[Pair]:
    """Pair the members with the reference: the table's ``delta``, else the first declared."""
    reference = next(
        (key for key in group.members if table.delta in key), next(iter(group.members))
    )
    against, other = group.members[reference]
    return [
        Pair(label, own, against, other)
        for key, (label, own) in group.members.items()
        if key != reference
    ]


def _row(group: Group, pair: Pair) -> list[str]:
    """Return one test as a row of texts."""
    label = f"{group.label}: {pair.label}" if group.label else pair.label
    wins = sum(loss < 0 for loss in pair.losses)
    mean = pair.own.spread(pair.differences, "+") if pair.differences else EMPTY
    count = len(pair.seeds)
    return [
        *(label, pair.against, str(count), mean, f"{wins} of {count}"),
        *(_p(sign_test(pair.losses)), _p(paired_t(pair.differences))),
    ]


def sign_test(losses: Sequence[float]) -> float | None:
    """Return the p value of the exact two-sided sign test; ties are left out, as is usual."""
    from scipy import stats  # here: importing it takes longer than a table

    decided = [loss for loss in losses if loss]
    if len(losses) < LEAST or not decided:
        return None
    return float(stats.binomtest(sum(loss > 0 for loss in decided), len(decided)).pvalue)


def paired_t(differences: Sequence[float]) -> float | None:
    """Return the p value of the paired two-sided t test, None where all differences are equal."""
    from scipy import stats

    if len(differences) < LEAST or statistics.stdev(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _p(value: float | None) -> str:
    """Return a p value with the digits that it deserves."""
    if value is None:
        return EMPTY
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

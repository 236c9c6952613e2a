"""The entries of a table, row by column: the runs of all seeds beside the paper's value."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from normrepro import metrics, reported
from normrepro.record import Record
from normrepro.reported import Reported
from normrepro.tables import Line, Table

EMPTY = "—"  # no run yet
DIVERGED = reported.DIVERGED
LACKING = "n/a"  # a finished run that has no such number
Found = Mapping[tuple[str, str], Mapping[int, Record]]


@dataclass(frozen=True)
class Entry:
    """One entry: what is measured and how it is written, its records by seed, the paper's value."""

    row: Line
    column: Line
    metric: str
    unit: str
    decimals: int
    better: str
    records: Mapping[int, Record]

    @property
    def paper(self) -> Reported:
        """What the paper reports."""
        return self.row.reported.get(self.column.key)

    @property
    def reason(self) -> str | None:
        """Why the paper has a dash or nothing."""
        return self.row.reasons.get(self.column.key)

    @cached_property
    def values(self) -> dict[int, float]:
        """The numbers by seed, without those of diverged runs."""
        every = {
            seed: metrics.value(own, self.metric) for seed, own in sorted(self.records.items())
        }
        return {seed: own for seed, own in every.items() if own is not None}

    @cached_property
    def diverged(self) -> tuple[int, ...]:
        """The seeds whose run diverged and left no number."""
        lost = {s for s, own in self.records.items() if own["status"] == "diverged"}
        return tuple(sorted(lost - set(self.values)))

    @property
    def mean(self) -> float | None:
        """The mean over the seeds that have a number."""
        return statistics.fmean(self.values.values()) if self.values else None

    def text(self) -> str:
        """Mean, spread and number of seeds."""
        if not self.records:
            return EMPTY
        if not self.values:
            return f"{DIVERGED if self.diverged else LACKING} (n = {len(self.records)})"
        lost = f", {len(self.diverged)} diverged" if self.diverged else ""
        return f"{self.spread(list(self.values.values()))} (n = {len(self.values)}{lost})"

    def seed_text(self, seed: int) -> str:
        """The number of one run."""
        if seed not in self.records:
            return EMPTY
        if seed in self.values:
            return self.number(self.values[seed])
        return DIVERGED if seed in self.diverged else LACKING

    def paper_text(self) -> str:
        """The paper's value, with its own spread where it gives one."""
        if isinstance(self.paper, str):
            return self.paper
        return "" if self.paper is None else self.number(self.paper)

    def spread(self, own: Sequence[float], sign: str = "") -> str:
        """Mean and, of two numbers or more, sample standard deviation."""
        mean = self.number(statistics.fmean(own), sign)
        return f"{mean} ± {self.number(statistics.stdev(own))}" if own[1:] else mean

    def number(self, own: float, sign: str = "") -> str:
        """A number with the entry's decimals."""
        return f"{own:{sign}.{self.decimals}f}"

    def loss(self, own: float) -> float:
        """A number turned so that larger is worse."""
        return own if self.better == "lower" else -own


Entries = Mapping[tuple[str, str], Entry]


def entries(table: Table, found: Found) -> Entries:
    """Return a table's entries from the records of each, as ``tables.collect`` finds them."""
    return {
        (row.key, column.key): _entry(table, row, column, found.get((row.key, column.key), {}))
        for row in table.rows
        for column in table.columns
    }


def _entry(table: Table, row: Line, column: Line, records: Mapping[int, Record]) -> Entry:
    """Return one entry; what the column says of unit and the like wins over the row, then table."""
    own = {
        name: next(
            value
            for value in (getattr(column, name), getattr(row, name), getattr(table, name))
            if value is not None
        )
        for name in ("unit", "decimals", "better")
    }
    return Entry(row, column, table.metric_of(row, column), records=records, **own)

"""Which entries of a table compete, which is the best, and how they order here and in the paper."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normrepro import metrics, reported
from normrepro.report.entries import Entries, Entry
from normrepro.tables import Line, Table

Key = tuple[str, str]  # of a row and a column


@dataclass(frozen=True)
class Group:
    """Entries that are compared with each other, by what tells them apart."""

    label: str
    members: Mapping[Key, tuple[str, Entry]]

    @property
    def seeds(self) -> list[int]:
        """The seeds that every member has a run of."""
        return sorted(set.intersection(*[set(own.records) for _, own in self.members.values()]))


def groups(table: Table, every: Entries) -> list[Group]:
    """Return what competes: the rows of each column, or the columns of each row, of one metric.

    One network judged by several rules (error, error_ema) competes with itself and others.
    """
    if table.compare == "none":
        return []
    found: dict[tuple[str, str, str], dict[Key, tuple[str, Entry]]] = {}
    for row, column in _in_order(table):
        entry = every[row.key, column.key]
        line, other = (column, row) if table.compare == "rows" else (row, column)
        place = (line.label, row.block or "", metrics.family(entry.metric))
        found.setdefault(place, {})[row.key, column.key] = (other.label, entry)
    shown = [position for position in range(3) if len({place[position] for place in found}) > 1]
    return [
        Group(", ".join(_word(place, position) for position in shown if place[position]), own)
        for place, own in found.items()
        if len(own) > 1
    ]


def _word(place: tuple[str, str, str], position: int) -> str:
    """Return a part of a group's label; the metric is the last."""
    return metrics.title(place[position]) if position == 2 else place[position]


def _in_order(table: Table) -> Iterable[tuple[Line, Line]]:
    """Yield (row, column), column by column or row by row."""
    if table.compare == "rows":
        return ((row, column) for column in table.columns for row in table.rows)
    return ((row, column) for row in table.rows for column in table.columns)


def best(table: Table, every: Entries, of_paper: bool = False) -> set[Key]:
    """Return the best entries, equal ones as they are printed; none where a run is missing."""
    found: set[Key] = set()
    for group in groups(table, every):
        own = {key: entry for key, (_, entry) in group.members.items()}
        losses = {key: _printed_loss(entry, of_paper) for key, entry in own.items()}
        there = [loss for loss in losses.values() if loss is not None]
        complete = of_paper or all(entry.records for entry in own.values())
        if complete and there:
            found |= {key for key, loss in losses.items() if loss == min(there)}
    return found


def _printed_loss(entry: Entry, of_paper: bool) -> float | None:
    """Return the number that stands in the table, larger is worse."""
    own = reported.value(entry.paper) if of_paper else entry.mean
    return None if own is None else entry.loss(float(entry.number(own)))


def sentences(table: Table, every: Entries) -> list[str]:
    """Say how the entries order, in every group whose entries all have runs."""
    found = [(group, _sentences(group)) for group in groups(table, every) if group.seeds]
    return [
        f"{group.label}: {text}" if group.label else text for group, own in found for text in own
    ]


def _sentences(group: Group) -> list[str]:
    """Say how a group orders here and in the paper, and whether its worst there is it here."""
    losses = {key: _losses(entry) for key, (_, entry) in group.members.items()}
    means = {key: statistics.fmean(own[s] for s in group.seeds) for key, own in losses.items()}
    texts = [f"Means over {count_of(group.seeds)}, best first: {_order(group, means)}."]
    own = {key: reported.value(entry.paper) for key, (_, entry) in group.members.items()}
    if None in own.values():
        return texts
    paper = {key: group.members[key][1].loss(value) for key, value in own.items()}
    texts.append(f"The paper's order: {_order(group, paper)}.")
    worst = max(paper, key=lambda key: paper[key])  # the first declared of equals
    rest = [found for key, found in losses.items() if key != worst]
    count = sum(all(losses[worst][s] > other[s] for other in rest) for s in group.seeds)
    texts.append(
        f"{group.members[worst][0]}, the worst in the paper, "
        f"is the worst in {count} of {count_of(group.seeds)}."
    )
    return texts


def count_of(paired: Sequence[int]) -> str:
    """Return the number of paired seeds in words that agree with it."""
    return f"{len(paired)} paired seed{'s' if len(paired) > 1 else ''}"


def _losses(entry: Entry) -> dict[int, float]:
    """Return an entry by seed, larger is worse, a run without a number worst of all."""
    return {
        seed: entry.loss(entry.values[seed]) if seed in entry.values else float("inf")
        for seed in entry.records
    }


def _order(group: Group, losses: Mapping[Key, float]) -> str:
    """Write the members from best to worst, equal ones joined."""
    ranked = sorted(losses, key=lambda key: losses[key])
    text, entry = group.members[ranked[0]]
    for before, key in itertools.pairwise(ranked):
        sign = "=" if losses[before] == losses[key] else "<" if entry.better == "lower" else ">"
        text += f" {sign} {group.members[key][0]}"
    return text

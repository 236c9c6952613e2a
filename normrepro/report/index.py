"""The index: every table and figure of every paper, with what of it has been run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normrepro import papers
from normrepro.blocks import Block, Grid, Title
from normrepro.record import Record
from normrepro.report.entries import EMPTY, Found
from normrepro.tables import Table, collect

ABOUT = (
    "Every number stands in `records.jsonl`, one line per finished run; `make report` renders the "
    "tables from it. Only `scale: paper` follows a paper's protocol; others are smaller. "
    "[index.html](index.html) is this page with the tables and plots, to be opened from a copy."
)
COST = "Hours are the runs' own; runs that several tables share count in each of them."
HEAD = ["table", "of the paper", "scale", "state", "seeds", "hours", "machine"]


@dataclass(frozen=True)
class State:
    """A table and, at each scale that it declares, the records of its entries."""

    table: Table
    found: Mapping[str, Found]

    @property
    def begun(self) -> list[str]:
        """The scales that have a run."""
        return [scale for scale, found in self.found.items() if any(found.values())]


def state_of(table: Table, records: Mapping[str, Record]) -> State:
    """Return a table's state at all its scales."""
    return State(table, {scale: collect(table, scale, records) for scale in table.scales})


def page(states: Sequence[State]) -> list[Block]:
    """Return the page of the index."""
    blocks: list[Block] = [Title("Results", 1), ABOUT, totals(states)]
    for paper in dict.fromkeys(state.table.paper for state in states):
        own = [state for state in states if state.table.paper == paper]
        blocks += [Title(own[0].table.short), Grid(HEAD, rows(own), numbers=False)]
        why = papers.illustrations(paper)
        drawn = [f"Figure {number}: {text}" for number, text in sorted(why.items())]
        blocks += [f"Nothing to run: {'; '.join(drawn)}."] if drawn else []
    return blocks


def totals(states: Iterable[State]) -> str:
    """Say how much has been run in all, shared runs counted once."""
    runs = {
        record["run"]: record
        for state in states
        for found in state.found.values()
        for entry in found.values()
        for record in entry.values()
    }
    return f"{len(runs)} runs stand in these tables, {cost(runs.values())} in all. {COST}"


def rows(states: Iterable[State]) -> list[list[str]]:
    """Return a line per table and scale with runs, and one per table without."""
    return [row for state in states for row in _rows(state)]


def _rows(state: State) -> list[list[str]]:
    """Return the lines of one table."""
    table, rest = state.table, [""] * 3
    if table.obstacle:
        link = f"[{table.label}]({table.key}.md)"
        return [[link, table.title, "", table.obstacle, *rest]]
    if not state.begun:
        declared = ", ".join(table.scales)
        return [[table.label, table.title, declared, "no run yet", *rest]]
    return [_row(table, scale, state.found[scale]) for scale in state.begun]


def _row(table: Table, scale: str, found: Found) -> list[str]:
    """Return the line of a table at a scale with runs."""
    counts = [len(entry) for entry in found.values()]
    runs = {own["run"]: own for entry in found.values() for own in entry.values()}.values()
    low, high = min(counts), max(counts)
    seeds = str(high) if low == high else f"{low} to {high}"
    return [
        f"[{table.label}]({table.key}.{scale}.md)",
        table.title,
        scale,
        f"{sum(map(bool, counts))} of {len(counts)} cells",
        f"{seeds} of {table.scale(scale).seeds}",
        hours(runs),
        machines(runs),
    ]


def cost(runs: Iterable[Record]) -> str:
    """Return the hours of runs in words."""
    return f"{hours(runs)} hours"


def hours(runs: Iterable[Record]) -> str:
    """Return the hours that runs took, summed."""
    return f"{sum(run.get('seconds') or 0 for run in runs) / 3600:.2f}"


def machines(runs: Iterable[Record]) -> str:
    """Return the kinds of machine that runs were made on, the commonest first."""
    kinds = Counter(machine(run.get("environment") or {}) for run in runs)
    ordered = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    return "; ".join(ordered) or EMPTY


def machine(environment: Mapping[str, object]) -> str:
    """Return the kind of one machine: its GPUs, or its processor."""
    if environment.get("gpu"):
        return f"{environment.get('world') or 1} x {environment['gpu']}"
    return f"{environment.get('cores') or '?'} cores, {environment.get('cpu') or 'unknown'}"

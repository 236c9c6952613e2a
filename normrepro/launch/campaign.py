"""Making tables: which runs they lack, each trained once for all of them; records; rendering."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from normrepro import report
from normrepro.checks import ConfigError
from normrepro.launch import plan
from normrepro.launch.bars import Bars
from normrepro.launch.driver import Outcome
from normrepro.launch.processes import Task
from normrepro.record import Record, merge_records, read_records
from normrepro.tables import Cell, Table

SHARE = 0.05  # of the time, at most, goes into rewriting the file of records


class Launcher(Protocol):
    """What trains tasks."""

    def outcomes(self) -> Iterator[Outcome]:
        """Yield each task's outcome once it has ended."""
        ...


Launch = Callable[[Sequence[Task], Bars], AbstractContextManager[Launcher]]


class Store:
    """The file of records; a large one is not rewritten for every record."""

    def __init__(self, path: Path) -> None:
        self.path, self.waiting = path, list[Record]()
        self.rest = 0.0  # when it may be written next

    def add(self, record: Record) -> list[str]:
        """Take a record, which also stands in its run's directory; return what is worth saying."""
        self.waiting.append(record)
        return self.flush() if time.monotonic() >= self.rest else []

    def flush(self) -> list[str]:
        """Write what waits."""
        begun = time.monotonic()
        said = merge_records(self.path, self.waiting) if self.waiting else []
        self.waiting.clear()
        now = time.monotonic()
        self.rest = now + (now - begun) / SHARE
        return said


@dataclass
class Campaign:
    """Tables to make at a scale, the runs that they are made of, and what went wrong."""

    tables: Sequence[Table]
    scale: str
    seeds: int | None
    runs: Path
    results: Path
    cells: dict[str, list[Cell]] = field(default_factory=dict)  # by table.key
    broken: dict[str, str] = field(default_factory=dict)  # by table.key: why it cannot be made
    failed: dict[str, Outcome] = field(default_factory=dict)  # by run
    missing: set[str] = field(default_factory=set)  # runs without a record

    def __post_init__(self) -> None:
        """Compose the cells; a table that cannot be composed stops no other."""
        self.store = Store(self.results / "records.jsonl")
        for table in self.tables:
            try:
                self.cells[table.key] = plan.distinct(table.cells(self.scale, self.seeds))
            except ConfigError as error:
                self.broken[table.key] = str(error)

    def owners(self) -> dict[str, tuple[Table, Cell]]:
        """Return every run once, with the first table that asks for it."""
        found: dict[str, tuple[Table, Cell]] = {}
        for table in self.tables:
            for cell in self.cells.get(table.key, ()):
                found.setdefault(cell.run, (table, cell))
        return found

    def begin(self) -> list[tuple[Table, Cell]]:
        """Take in the records that are there already; return the missing runs."""
        owners, records = self.owners(), read_records(self.store.path)
        for run, (_, cell) in owners.items():
            if record := plan.ended(cell, self.scale, records, self.runs):
                self.store.waiting.append(record)
            else:
                self.missing.add(run)
        self.said = self.store.flush()
        return [owners[run] for run in owners if run in self.missing]

    def train(self, tasks: Sequence[Task], launch: Launch, bars: Bars) -> None:
        """Run tasks and keep their records; render each table as soon as its last run has ended."""
        try:
            with launch(tasks, bars) as launcher:
                for outcome in launcher.outcomes():
                    self.take(outcome, bars)
        finally:
            tell(bars, self.store.flush())
            bars.close()

    def take(self, outcome: Outcome, bars: Bars) -> None:
        """Take in one outcome."""
        run = outcome.task.run
        if outcome.record is None:
            self.failed[run] = outcome
            bars.say(f"{run} failed with exit code {outcome.code}")
            return
        self.missing.discard(run)
        tell(bars, self.store.add(outcome.record))
        bars.say(f"[{bars.done}/{bars.total}] {ended(outcome.record)}, ETA {bars.eta()}")
        complete = [table for table in self.tables if self.has(table, run) and not self.left(table)]
        if complete and len(self.tables) > 1:
            tell(bars, self.store.flush())
            self.render(complete)

    def has(self, table: Table, run: str) -> bool:
        """Tell whether a table has a run."""
        return any(cell.run == run for cell in self.cells.get(table.key, ()))

    def left(self, table: Table) -> int:
        """Return how many runs a table still lacks."""
        return sum(cell.run in self.missing for cell in self.cells.get(table.key, ()))

    def render(self, tables: Iterable[Table]) -> list[Path]:
        """Write tables from the records; one that cannot be rendered stops no other."""
        records, paths = read_records(self.store.path), []
        for table in tables:
            if table.key in self.cells:
                try:
                    paths.append(report.write(table, self.scale, records, self.results))
                except ConfigError as error:
                    self.broken[table.key] = str(error)
        return paths

    def summary(self) -> list[str]:
        """Return a line per table: how many of its runs it has, and what stopped it."""
        lines = []
        for table in self.tables:
            runs = {cell.run for cell in self.cells.get(table.key, ())}
            bad = len(runs & self.failed.keys())
            state = f"{len(runs - self.missing)} of {len(runs)} runs"
            state += f", {bad} failed" if bad else ""
            lines.append(f"{table.label}: {self.broken.get(table.key, state)}")
        return lines


def tell(bars: Bars, messages: Iterable[str]) -> None:
    """Say something above the bars."""
    for message in messages:
        bars.say(message)


def ended(record: Record) -> str:
    """Say how a run ended, in a line."""
    number = record.get("metrics", {}).get("error")
    state = "diverged" if record["status"] != "finished" else "finished"
    state = f"error {number:.4g}" if state == "finished" and number is not None else state
    return f"{record['run']}: {state}, {record['seconds']:.0f} s"

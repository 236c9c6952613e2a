"""Tables of the papers: cells of rows x columns, each a list of overrides and a reported value.

``normrepro.papers`` reads them from their declarations; a figure is a table with a plot. A cell
finds its run by composing its overrides, so that nothing has to be tagged, matched or parsed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from normrepro import names
from normrepro.config import ConfigError
from normrepro.record import Record
from normrepro.reported import Reported


@dataclass(frozen=True)
class Line:
    """One row or one column: its label, what it adds to the overrides, what the paper reports.

    ``metric``, ``unit``, ``decimals`` and ``better`` are None where the table's hold. ``block``
    says which rows are compared with each other; ``x`` is the place on a plot's axis; ``reasons``
    explain a dash or a null; ``ocr`` has what a garbled value looks like in the paper's text;
    ``cells`` has overrides of a row that hold in one column only.
    """

    key: str
    label: str
    overrides: tuple[str, ...] = ()
    cells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metric: str | None = None
    unit: str | None = None
    decimals: int | None = None
    better: str | None = None
    block: str | None = None
    x: float | None = None
    reported: Mapping[str, Reported] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    ocr: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plot:
    """How a table or figure is drawn: ``curves`` per epoch, ``lines`` or ``bars`` over the columns'
    x, ``layers`` of the network at some epochs; which metrics where not the table's own.
    """

    kind: str = "curves"
    x: str | None = None
    log: bool = False
    metrics: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scale:
    """What a scale puts in the place of the paper's overrides, and how many seeds it asks for."""

    seeds: int
    base: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One seed of one entry of a table: the overrides that make its run, and the run's name."""

    row: str
    column: str
    seed: int
    overrides: tuple[str, ...]
    run: str


@dataclass(frozen=True)
class Table:
    """One table or figure of a paper."""

    paper: str
    short: str
    name: str  # table1, figure2, figure3a
    title: str
    source: str
    metric: str
    unit: str
    better: str
    decimals: int
    delta: str | None
    tolerance: float | None
    base: tuple[str, ...]
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    scales: Mapping[str, Scale]
    notes: tuple[str, ...]
    compare: str = "rows"  # what competes for the best number: the rows of a column, or ...
    needs: str | None = None  # the task that it waits for
    describes: str | None = None  # rendered from the layers themselves
    plot: Plot = Plot()

    @property
    def key(self) -> str:
        """The name of its files: mabn_table1."""
        return f"{self.paper}_{self.name}"

    @property
    def label(self) -> str:
        """Its name for a reader: MABN Table 1."""
        return f"{self.short} {self.kind.capitalize()} {self.name.removeprefix(self.kind)}"

    @property
    def kind(self) -> str:
        """Whether it is a table or a figure."""
        return "figure" if self.name.startswith("figure") else "table"

    @property
    def obstacle(self) -> str:
        """Why nothing of it can be run, in a few words; empty where it can."""
        if self.needs:
            return f"not runnable yet: needs the {self.needs} task"
        return "nothing to run: it describes layers" if self.describes else ""

    def metric_of(self, row: Line, column: Line) -> str:
        """Return an entry's metric: the column's, else the row's, else the table's."""
        return column.metric or row.metric or self.metric

    def scale(self, name: str) -> Scale:
        """Return what the table declares for a scale."""
        if self.obstacle:
            raise ConfigError(f"{self.label}: {self.obstacle}")
        if name not in self.scales:
            known = ", ".join(self.scales)
            raise ConfigError(f"{self.paper} {self.name} has no scale={name}; it has: {known}")
        return self.scales[name]

    def cells(self, scale: str, seeds: int | Sequence[int] | None = None) -> list[Cell]:
        """List the cells at a scale for so many seeds (from 0) or for those given, seed by seed."""
        seeds = self.scale(scale).seeds if seeds is None else seeds
        seeds = range(seeds) if isinstance(seeds, int) else seeds
        return [
            _cell(row, column, seed, self.overrides(scale, row, column))
            for seed in seeds
            for row in self.rows
            for column in self.columns
        ]

    def overrides(self, scale: str, row: Line, column: Line) -> tuple[str, ...]:
        """Put the overrides of an entry together, without its seed; the last of each key wins."""
        own = self.scale(scale)
        layers = [self.base, own.base, row.overrides, own.rows.get(row.key, ())]
        layers += [column.overrides, own.columns.get(column.key, ())]
        layers += [row.cells.get(column.key, ()), (f"scale={scale}",)]
        return overlay(layers)


def _cell(row: Line, column: Line, seed: int, overrides: tuple[str, ...]) -> Cell:
    """Return one seed of an entry."""
    run = names.run_name(overrides, seed)
    return Cell(row.key, column.key, seed, (*overrides, f"seed={seed}"), run)


def overlay(layers: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Join lists of overrides; a later one takes the place of an earlier one with the same key."""
    merged = {override_key(override): override for layer in layers for override in layer}
    return tuple(merged.values())


def override_key(override: str) -> str:
    """Return what an override sets: ``batch.norm`` of ``batch.norm=2``."""
    return override.partition("=")[0].lstrip("+~")


def collect(
    table: Table, scale: str, records: Mapping[str, Record]
) -> dict[tuple[str, str], dict[int, Record]]:
    """Return every entry's records by seed: seeds declared, and further ones without a gap."""
    found: dict[tuple[str, str], dict[int, Record]] = {}
    seed, declared = 0, table.scale(scale).seeds
    while True:
        cells = table.cells(scale, [seed])
        if seed >= declared and not any(cell.run in records for cell in cells):
            return found
        for cell in cells:
            entry = found.setdefault((cell.row, cell.column), {})
            if cell.run in records:
                entry[seed] = records[cell.run]
        seed += 1

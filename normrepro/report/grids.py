"""The grids of a table's page: our numbers, the paper's, and what compares them.

A narrow table has everything in one grid. A wide one has a grid for each, of the same shape as the
paper's table.
"""

from collections.abc import Callable, Sequence
from functools import partial

from normrepro import reported
from normrepro.blocks import BREAK, Block, Grid, Title
from normrepro.report.entries import EMPTY, Entries, Entry
from normrepro.report.ranking import best
from normrepro.report.verdict import difference, verdict
from normrepro.tables import Line, Table

WIDE = 9  # columns of a grid beyond which it is split
Text = Callable[[Entry], str]


def results(table: Table, scale: str, every: Entries) -> list[Block]:
    """Return the main grids: ours, the paper's, and at scale=paper differences and verdicts.

    A figure whose numbers nobody can read, and a study of our own, have only ours.
    """
    paper = "paper" if scale == "paper" else "paper (full scale)"
    parts = [
        ("here", partial(ours, best(table, every))),
        (paper, partial(papers, best(table, every, of_paper=True))),
    ]
    judged = [("difference", difference), ("verdict", partial(_verdict, table))]
    judged = judged if scale == "paper" else []
    if all(entry.paper is None for entry in every.values()):
        parts, judged = parts[:1], []
    if (len(parts) + len(judged) + 2 * bool(table.delta)) * len(table.columns) <= WIDE:
        return [_narrow(table, every, [*parts, *judged], paper)]
    parts += [("difference and verdict", partial(_judged, table))] if judged else []
    return [
        block for title, text in parts for block in (Title(title, 3), by_column(table, every, text))
    ]


def _judged(table: Table, entry: Entry) -> str:
    """Return an entry's difference and verdict."""
    return BREAK.join(text for text in (difference(entry), _verdict(table, entry)) if text)


def _verdict(table: Table, entry: Entry) -> str:
    """Return an entry's verdict."""
    return verdict(entry, table.tolerance)


def ours(strong: set[tuple[str, str]], entry: Entry) -> str:
    """Return our number, bold where it is the best."""
    return _bold(entry, strong, entry.text())


def papers(strong: set[tuple[str, str]], entry: Entry) -> str:
    """Return the paper's value, bold where it is the best."""
    return _bold(entry, strong, entry.paper_text())


def _bold(entry: Entry, strong: set[tuple[str, str]], text: str) -> str:
    """Set a text in bold where its entry is among the best."""
    return f"**{text}**" if (entry.row.key, entry.column.key) in strong else text


def by_column(table: Table, every: Entries, text: Text) -> Grid:
    """Return a grid of one text per entry, in the shape of the paper's table."""
    head = ["", *[_headed(table, column) for column in table.columns]]
    rows = [
        [row_label(table, row), *[text(every[row.key, column.key]) for column in table.columns]]
        for row in table.rows
    ]
    return Grid(head, rows)


def _narrow(table: Table, every: Entries, parts: Sequence[tuple[str, Text]], paper: str) -> Grid:
    """Return one grid: for each column ours, the paper's, and the differences to the reference."""
    head, rows = [""], [[row_label(table, row)] for row in table.rows]
    for column in table.columns:
        for number, (title, text) in enumerate(parts):
            head.append(_headed(table, column) if number == 0 else _titled(table, column, title))
            for row, cells in zip(table.rows, rows, strict=True):
                cells.append(text(every[row.key, column.key]))
            delta = {0: delta_here, 1: delta_paper}.get(number) if table.delta else None
            if delta:
                label = f"Δ to {line_of(table, table.delta).label}"
                head.append(label if number == 0 else f"{label}, {paper}")
                for row, cells in zip(table.rows, rows, strict=True):
                    other = every[table.delta, column.key]
                    cells.append(
                        "" if row.key == table.delta else delta(every[row.key, column.key], other)
                    )
    return Grid(head, rows)


def delta_here(own: Entry, other: Entry) -> str:
    """Return the mean of our paired differences."""
    paired = [own.values[s] - other.values[s] for s in own.values if s in other.values]
    return own.spread(paired, "+") if paired else EMPTY


def delta_paper(own: Entry, other: Entry) -> str:
    """Return the difference of the paper's values."""
    one, two = reported.value(own.paper), reported.value(other.paper)
    return "" if one is None or two is None else own.number(one - two, "+")


def per_seed(table: Table, every: Entries) -> Grid:
    """Return every run's number: a row per seed, or per entry where there are many entries."""
    seeds = sorted({seed for entry in every.values() for seed in entry.records})
    names, own = [], []
    for column in table.columns:
        for row in table.rows:
            names.append(_titled(table, column, row_label(table, row)))
            own.append(every[row.key, column.key])
    texts = [[entry.seed_text(seed) for seed in seeds] for entry in own]
    if len(own) <= WIDE:
        rows = [
            [str(seed), *line] for seed, line in zip(seeds, zip(*texts, strict=True), strict=True)
        ]
        return Grid(["seed", *names], rows)
    head = ["", *[f"seed {seed}" for seed in seeds]]
    return Grid(head, [[name, *line] for name, line in zip(names, texts, strict=True)])


def row_label(table: Table, row: Line) -> str:
    """Return a row's label, its block in front where the label does not say it."""
    named = not row.block or row.label.startswith(row.block)
    return row.label if named else f"{row.block}: {row.label}"


def line_of(table: Table, row: str) -> Line:
    """Return a row by its key."""
    return next(line for line in table.rows if line.key == row)


def _headed(table: Table, column: Line) -> str:
    """Return a column's heading, with its unit."""
    unit = column.unit or table.unit
    return f"{column.label} ({unit})" if unit else column.label


def _titled(table: Table, column: Line, text: str) -> str:
    """Put the column's label before a heading where the table has several columns."""
    return f"{column.label}, {text}" if table.columns[1:] else text

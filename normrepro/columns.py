"""The columns of a table's markdown: our numbers, the paper's, and what compares them."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normrepro.record import Record
from normrepro.tables import Line, Table

EMPTY = "—"  # no run yet
DIVERGED = "-"  # as the papers write it
Found = Mapping[tuple[str, str], Mapping[int, Record]]
Part = tuple[list[str], list[list[str]]]  # headings, and the texts of every row


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Return a markdown table; columns of numbers, all but the first, are set to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    lines = [[text.replace("|", "\\|") for text in row] for row in (head, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def results(table: Table, scale: str, found: Found) -> Part:
    """Return the main grid: for every column ours, then the paper's, at scale=paper the verdict."""
    head, rows = [""], [[row.label] for row in table.rows]
    for column in table.columns:
        parts = [ours(table, column, found), papers(table, column, scale)]
        parts += [verdict(table, column, found)] if scale == "paper" else []
        for titles, texts in parts:
            head += titles
            for row, cells in zip(rows, texts, strict=True):
                row += cells
    return head, rows


def ours(table: Table, column: Line, found: Found) -> Part:
    """Our numbers of a column, and their differences to the reference row over paired seeds."""
    rows = [[cell_text(table, column, found[row.key, column.key])] for row in table.rows]
    if table.delta:
        base = values(table, column, found[table.delta, column.key])
        for row, cells in zip(table.rows, rows, strict=True):
            own = values(table, column, found[row.key, column.key])
            paired = [own[seed] - base[seed] for seed in own if seed in base]
            cells.append(_delta_text(table, row, spread(table, paired, "+") if paired else EMPTY))
    return [f"{column.label} ({table.unit})", *_delta_head(table)], rows


def papers(table: Table, column: Line, scale: str) -> Part:
    """The paper's numbers of a column, and the differences that follow from them."""
    name = "paper" if scale == "paper" else "paper (full scale)"
    head = [_titled(table, column, name), *[f"{title}, {name}" for title in _delta_head(table)]]
    rows = [[number(table, row.reported.get(column.key))] for row in table.rows]
    if table.delta:
        base = line_of(table, table.delta).reported.get(column.key)
        for row, cells in zip(table.rows, rows, strict=True):
            own = row.reported.get(column.key)
            both = is_number(own) and is_number(base)
            cells.append(_delta_text(table, row, number(table, own - base, "+") if both else ""))
    return head, rows


def verdict(table: Table, column: Line, found: Found) -> Part:
    """How far our means are from the paper's numbers; only where the protocol is the paper's."""
    rows = []
    for row in table.rows:
        entry, paper = found[row.key, column.key], row.reported.get(column.key)
        own = list(values(table, column, entry).values())
        if own and is_number(paper):
            gap = statistics.fmean(own) - paper
            near = abs(gap) <= table.tolerance
            rows.append([number(table, gap, "+"), "reproduced" if near else "not reproduced"])
        elif entry and not own and paper == DIVERGED:
            rows.append([EMPTY, "reproduced"])  # diverged there as here
        else:
            rows.append([EMPTY, "not reproduced" if entry and paper is not None else EMPTY])
    head = [_titled(table, column, "difference"), f"verdict (within {table.tolerance})"]
    return head, rows


def per_seed(table: Table, found: Found) -> Part:
    """One row per seed, so that paired differences can be seen."""
    seeds = sorted({seed for entry in found.values() for seed in entry})
    entries = [(row, column) for column in table.columns for row in table.rows]
    head = ["seed", *[_titled(table, column, row.label) for row, column in entries]]
    rows = [
        [str(seed), *[_seed_text(table, c, found[r.key, c.key].get(seed)) for r, c in entries]]
        for seed in seeds
    ]
    return head, rows


def values(table: Table, column: Line, entry: Mapping[int, Record]) -> dict[int, float]:
    """Return an entry's numbers by seed, without the diverged runs."""
    every = {seed: value(table, column, record) for seed, record in sorted(entry.items())}
    return {seed: own for seed, own in every.items() if own is not None}


def value(table: Table, column: Line, record: Record) -> float | None:
    """Return a run's number in a column, None where it diverged."""
    metric = column.metric or table.metric
    return None if record["status"] == "diverged" else record["metrics"].get(metric)


def cell_text(table: Table, column: Line, entry: Mapping[int, Record]) -> str:
    """Return mean, spread and number of seeds of an entry."""
    if not entry:
        return EMPTY
    own = list(values(table, column, entry).values())
    if not own:
        return f"{DIVERGED} (n = {len(entry)})"
    lost = f", {len(entry) - len(own)} diverged" if len(own) < len(entry) else ""
    return f"{spread(table, own)} (n = {len(own)}{lost})"


def spread(table: Table, own: Sequence[float], sign: str = "") -> str:
    """Return the mean and, of two numbers or more, the sample standard deviation."""
    mean = number(table, statistics.fmean(own), sign)
    return f"{mean} ± {number(table, statistics.stdev(own))}" if own[1:] else mean


def number(table: Table, own: Any, sign: str = "") -> str:
    """Return a number with the table's decimals; text, such as the papers' dash, stays."""
    return f"{own:{sign}.{table.decimals}f}" if is_number(own) else own or ""


def is_number(own: Any) -> bool:
    """Say whether an entry is a number, not the dash of a diverged run or nothing at all."""
    return isinstance(own, int | float)


def line_of(table: Table, row: str) -> Line:
    """Return a row by its key."""
    return next(line for line in table.rows if line.key == row)


def _seed_text(table: Table, column: Line, record: Record | None) -> str:
    """Return the text of one run."""
    if record is None:
        return EMPTY
    return number(table, value(table, column, record)) or DIVERGED


def _delta_head(table: Table) -> list[str]:
    """Return the heading of the differences, where the table has any."""
    return [f"Δ to {line_of(table, table.delta).label}"] if table.delta else []


def _delta_text(table: Table, row: Line, text: str) -> str:
    """Return a difference's text; the reference row has none to itself."""
    return "" if row.key == table.delta else text


def _titled(table: Table, column: Line, text: str) -> str:
    """Put the column's label before a heading where the table has several columns."""
    return f"{column.label}, {text}" if table.columns[1:] else text

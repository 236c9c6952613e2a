"""From what a paper's YAML declares to tables; a slip is an error that names it."""

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any

from normrepro import metrics, reported
from normrepro.config import ConfigError
from normrepro.tables import Line, Plot, Scale, Table

KINDS = {"tables": "table", "figures": "figure"}
PAPER_KEYS = {"title", "venue", "short", "tables", "figures", "illustrations"}
SAID = {"title", "source", "columns", "rows"}
TO_RUN = {"metric", "unit", "better", "base", "scales"}  # where there is something to run
OPTIONAL = {"decimals", "delta", "tolerance", "notes", "compare", "needs", "describes", "plot"}
LINE_KEYS = {
    *("label", "overrides", "cells", "metric", "unit", "decimals", "better", "block", "x"),
    *("reported", "reasons", "ocr"),
}
SCALE_KEYS = {"seeds", "base", "rows", "columns", "notes"}
PLOT_KEYS = {"kind", "x", "log", "metrics", "epochs"}
WORDS = {
    "better": ("lower", "higher"),
    "compare": ("rows", "columns", "none"),
    "needs": (None, "detection", "segmentation", "speed"),
    "describes": (None, "layers"),
}
PLOTS = ("curves", "lines", "bars", "layers")


def parse(paper: str, content: Mapping[str, Any]) -> dict[str, Table]:
    """Build the tables and figures of a paper from what its YAML holds."""
    _check_keys(f"{paper}.yaml", content, PAPER_KEYS, {"short"})
    head = {"paper": paper, "short": content["short"]}
    return {
        f"{kind}{number}": _table({**head, "name": f"{kind}{number}"}, declared)
        for group, kind in KINDS.items()
        for number, declared in _numbered(paper, content.get(group) or {})
    }


def _numbered(paper: str, group: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """Return tables or figures by number; a figure's panels are 1a, 1b."""
    for number in group:
        if not re.fullmatch(r"\d+[a-z]?", str(number)):
            raise ConfigError(f"{paper}.yaml: {number!r} is no number such as 2, or 2a for a panel")
    return group.items()


def check_illustrations(paper: str, content: Mapping[str, Any]) -> dict[int, str]:
    """Return the figures without data; one that is declared as a figure too is an error."""
    found = dict(content.get("illustrations") or {})
    twice = set(found) & set(content.get("figures") or {})
    if twice:
        raise ConfigError(f"{paper}.yaml: figure {twice.pop()} is an illustration and a figure")
    return found


def _table(head: Mapping[str, str], declared: Mapping[str, Any]) -> Table:
    """Build one table, refusing what it does not know."""
    where = f"{head['paper']}.yaml, {head['name']}"
    runs = not (declared.get("needs") or declared.get("describes"))
    _check_keys(where, declared, SAID | TO_RUN | OPTIONAL, SAID | TO_RUN if runs else SAID)
    if not runs and declared.get("scales"):
        raise ConfigError(f"{where}: has scales, but with needs or describes nothing of it runs")
    table = Table(
        **head,
        **{key: declared[key] for key in ("title", "source")},
        metric=declared.get("metric", ""),
        unit=declared.get("unit", "%"),
        better=declared.get("better", "higher"),
        decimals=declared.get("decimals", 2),
        delta=declared.get("delta"),
        tolerance=declared.get("tolerance"),
        base=tuple(declared.get("base", ())),
        rows=_lines(where, declared["rows"]),
        columns=_lines(where, declared["columns"]),
        scales={name: _scale(where, own) for name, own in declared.get("scales", {}).items()},
        notes=tuple(declared.get("notes", ())),
        compare=declared.get("compare", "rows"),
        needs=declared.get("needs"),
        describes=declared.get("describes"),
        plot=_plot(where, head["name"], declared.get("plot")),
    )
    _check_table(where, table)
    return table


def _check_table(where: str, table: Table) -> None:
    """Refuse words that mean nothing, and mention of rows and columns that are not there."""
    for key, allowed in WORDS.items():
        if getattr(table, key) not in allowed:
            known = " or ".join(str(word) for word in allowed if word)
            raise ConfigError(f"{where}: {key} is {known}, not {getattr(table, key)!r}")
    named = (table.metric, *(line.metric for line in (*table.rows, *table.columns)))
    for metric in (*named, *table.plot.metrics):
        if metric:
            metrics.parse(metric)
    rows, columns = {row.key for row in table.rows}, {column.key for column in table.columns}
    for row in table.rows:
        _check_row(f"{where}, {row.key}", row, columns, words=table.describes is not None)
    for name, scale in table.scales.items():
        _check_keys(f"{where}, rows of scale {name}", scale.rows, rows)
        _check_keys(f"{where}, columns of scale {name}", scale.columns, columns)
    _check_keys(f"{where}, delta", [table.delta] if table.delta else [], rows)


def _check_row(where: str, row: Line, columns: Set[str], words: bool) -> None:
    """Refuse values that nobody can read, and reasons for values that need none."""
    for name in ("cells", "reported", "reasons", "ocr"):
        _check_keys(f"{where}, {name}", getattr(row, name), columns)
    for column, own in row.reported.items() if not words else ():
        reported.check(f"{where}, reported of {column}", own)
    for column in row.reasons if not words else ():
        if reported.is_number(row.reported.get(column)):
            raise ConfigError(f"{where}: a reason for {column}, whose value is a number")


def _lines(where: str, declared: Mapping[str, Any]) -> tuple[Line, ...]:
    """Build the rows or the columns of a table."""
    for key, line in declared.items():
        _check_keys(f"{where}, {key}", line, LINE_KEYS, {"label"})
    return tuple(
        Line(
            **{
                "key": str(key),
                **line,
                "overrides": tuple(line.get("overrides") or ()),
                "cells": {at: tuple(own) for at, own in line.get("cells", {}).items()},
            }
        )
        for key, line in declared.items()
    )


def _scale(where: str, declared: Mapping[str, Any]) -> Scale:
    """Build what a table declares for one scale."""
    _check_keys(f"{where}, scales", declared, SCALE_KEYS, {"seeds"})
    rows, columns = (declared.get(axis, {}) for axis in ("rows", "columns"))
    return Scale(
        seeds=declared["seeds"],
        base=tuple(declared.get("base", ())),
        rows={key: tuple(overrides) for key, overrides in rows.items()},
        columns={key: tuple(overrides) for key, overrides in columns.items()},
        notes=tuple(declared.get("notes", ())),
    )


def _plot(where: str, name: str, declared: Mapping[str, Any] | None) -> Plot:
    """Build what a table or figure declares of its plot; the metric per epoch without it."""
    declared = declared or {}
    _check_keys(f"{where}, plot", declared, PLOT_KEYS)
    plot = Plot(
        kind=declared.get("kind", "curves"),
        x=declared.get("x"),
        log=declared.get("log", False),
        metrics=tuple(declared.get("metrics", ())),
        epochs=tuple(declared.get("epochs", ())),
    )
    if plot.kind not in PLOTS:
        raise ConfigError(f"{where}: plot.kind is one of {', '.join(PLOTS)}, not {plot.kind!r}")
    return plot


def _check_keys(
    where: str, declared: Iterable[str], known: Set[str], needed: Set[str] = frozenset()
) -> None:
    """Refuse keys that are not known, and the lack of needed ones."""
    unknown, missing = set(declared) - known, needed - set(declared)
    if unknown:
        raise ConfigError(f"{where}: unknown {_joined(unknown)}; known: {', '.join(sorted(known))}")
    if missing:
        raise ConfigError(f"{where}: lacks {_joined(missing)}")


def _joined(keys: Iterable[Any]) -> str:
    """Return keys in order, as one text."""
    return ", ".join(sorted(map(str, keys)))

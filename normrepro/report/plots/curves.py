"""Curves: a metric per epoch, a line per row, a panel per column."""

import statistics
from collections.abc import Mapping

from normrepro import metrics
from normrepro.record import Record
from normrepro.report.entries import Entries, Entry
from normrepro.report.plots.panel import Panel, Point, Series
from normrepro.tables import Line, Table

ABOUT = "mean of the seeds, band from least to largest"


def panels(table: Table, scale: str, every: Entries) -> list[Panel]:
    """Return a panel per metric and column; panels that would show the same are one.

    Where the columns of a row are compared, it is a panel per row, with a line per column.
    """
    rows, columns = table.rows, table.columns
    own = {(row.key, column.key): every[row.key, column.key] for row in rows for column in columns}
    if table.compare == "columns":
        rows, columns = columns, rows
        own = {(other, one): entry for (one, other), entry in own.items()}
    found: dict[str, Panel] = {}
    for column in columns:
        for metric in table.plot.metrics or (None,):
            entries = {row.label: own[row.key, column.key] for row in rows}
            panel = _panel(table, column, metric, entries)
            if any(one.points for one in panel.series):
                shown = repr((panel.y, [(one.label, one.points) for one in panel.series]))
                found.setdefault(shown, panel)
    return list(found.values())


def _panel(table: Table, column: Line, metric: str | None, entries: Mapping[str, Entry]) -> Panel:
    """Return a panel with a line per entry."""
    series = [
        Series(label, number, curve(entry.records, metric or entry.metric))
        for number, (label, entry) in enumerate(entries.items())
    ]
    key = _plain(metric or next(iter(entries.values())).metric)
    unit = "" if "loss" in key else column.unit or table.unit
    return Panel(
        title=column.label,
        about=ABOUT,
        x=table.plot.x or "epoch",
        y=f"{key.replace('_', ' ')} ({unit})" if unit else key.replace("_", " "),
        series=series,
        log_y=table.plot.log,
    )


def _plain(metric: str) -> str:
    """Return a metric's key in the history."""
    return metric.partition("@")[0].removeprefix("best_")


def curve(records: Mapping[int, Record], metric: str) -> list[Point]:
    """Return mean, least and largest per epoch; a diverged run is in while it lasts."""
    by_epoch: dict[float, list[float]] = {}
    for _, run in sorted(records.items()):
        for epoch, value in metrics.curve(run, metric):
            by_epoch.setdefault(epoch, []).append(value)
    return [(e, statistics.fmean(own), min(own), max(own)) for e, own in sorted(by_epoch.items())]


def spread(entry: Entry, x: float) -> list[Point]:
    """Return an entry's mean, least and largest as a point at x; nothing without a number."""
    own = list(entry.values.values())
    return [(x, statistics.fmean(own), min(own), max(own))] if own else []

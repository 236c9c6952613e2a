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
    """Return a panel per metric and column; columns of the same runs and metric share one."""
    found, seen = [], set()
    for column in table.columns:
        for metric in table.plot.metrics or (None,):
            series = _series(table, column, metric, every)
            shown = repr([(one.label, one.points) for one in series])
            if shown not in seen and any(one.points for one in series):
                seen.add(shown)
                found.append(_panel(table, column, metric, series))
    return found


def _series(table: Table, column: Line, metric: str | None, every: Entries) -> list[Series]:
    """Return a line per row."""
    own = [every[row.key, column.key] for row in table.rows]
    return [
        Series(entry.row.label, number, curve(entry.records, metric or entry.metric))
        for number, entry in enumerate(own)
    ]


def _panel(table: Table, column: Line, metric: str | None, series: list[Series]) -> Panel:
    """Return a panel with its names."""
    key = _plain(metric or column.metric or table.metric)
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

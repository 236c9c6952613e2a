"""Layers: a number per normalizer, from the network's input to its output, at some epochs."""

import statistics
from collections.abc import Sequence
from itertools import zip_longest

from normrepro import metrics
from normrepro.report.entries import Entries, Entry
from normrepro.report.plots.panel import Panel, Point, Series
from normrepro.tables import Line, Table

ABOUT = "mean of the seeds, band from least to largest"


def panels(table: Table, scale: str, every: Entries) -> list[Panel]:
    """Return a panel per metric, column and epoch, a line per row.

    A table of one row has a line per epoch instead, in a panel per metric and column.
    """
    found = []
    for metric in table.plot.metrics or (table.metric.partition("@")[0],):
        for column in table.columns:
            own = [every[row.key, column.key] for row in table.rows]
            at = epochs(own, metric, table.plot.epochs)
            if len(own) == 1:
                series = [_series(own[0], f"epoch {e}", n, metric, e) for n, e in enumerate(at)]
                found.append(_panel(table, column, metric, None, series))
                continue
            for epoch in at:
                series = [_series(e, e.row.label, n, metric, epoch) for n, e in enumerate(own)]
                found.append(_panel(table, column, metric, epoch, series))
    return [panel for panel in found if any(one.points for one in panel.series)]


def epochs(own: Sequence[Entry], metric: str, wanted: Sequence[int]) -> list[int]:
    """Return the wanted epochs that some history has; the last of all where it has none of them."""
    key = metrics.parse(metric).key
    there = {
        row["epoch"]
        for entry in own
        for record in entry.records.values()
        for row in record.get("history") or ()
        if isinstance(row.get(key), list)
    }
    return [epoch for epoch in wanted if epoch in there] or sorted(there)[-1:]


def _series(entry: Entry, label: str, number: int, metric: str, epoch: int) -> Series:
    """Return the mean over seeds layer by layer."""
    lists = [metrics.per_layer(own, metric, epoch) for _, own in sorted(entry.records.items())]
    points: list[Point] = []
    for layer, values in enumerate(zip_longest(*lists)):  # entry 0 is the input
        own = [value for value in values if value is not None]
        points += [(layer, statistics.fmean(own), min(own), max(own))] if own else []
    return Series(label, number, points)


def _panel(
    table: Table, column: Line, metric: str, epoch: int | None, series: Sequence[Series]
) -> Panel:
    """Return a panel with its names."""
    named = [column.label] if table.columns[1:] else []
    named += [f"epoch {epoch}"] if epoch is not None else []
    return Panel(
        title=", ".join(named),
        about=ABOUT,
        x=table.plot.x or "layer",
        y=metric.replace("_", " "),
        series=series,
        log_y=table.plot.log,
    )

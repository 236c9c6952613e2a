"""Lines and bars: the metric of every entry over the columns' x, a line or a color per row."""

import dataclasses
from collections.abc import Mapping, Sequence

from normrepro import metrics, reported
from normrepro.report.entries import Entries, Entry
from normrepro.report.plots.curves import spread
from normrepro.report.plots.panel import PAPER, Panel, Point, Series
from normrepro.tables import Line, Table

Placed = Mapping[str, tuple[float, str]]  # by a line's key its x and what stands there


def lines(table: Table, scale: str, every: Entries) -> list[Panel]:
    """Return a panel per metric with a line per row."""
    return _panels(table, scale, every, bars=False)


def bars(table: Table, scale: str, every: Entries) -> list[Panel]:
    """Return a panel per metric with a group of bars per place on the axis."""
    return _panels(table, scale, every, bars=True)


def _panels(table: Table, scale: str, every: Entries, bars: bool) -> list[Panel]:
    """Return the panels that have a point."""
    along, across = axes(table)
    keys = {(line.key, other.key): (other.key, line.key) for line in across for other in along}
    if along is table.columns:
        keys = {key: key for key in keys}
    places = placed(along, even=bars)
    marks = "lines" if bars else "band"
    found = []
    for metric in table.plot.metrics or (None,):
        own = {key: _measured(every[place], metric) for key, place in keys.items()}
        series = [_series(n, line, along, places, own) for n, line in enumerate(across)]
        if any(one.points for one in series):
            panel = Panel(
                title=metrics.title(metric) if metric else "",
                about=f"mean of the seeds, {marks} from least to largest",
                x=table.plot.x or "",
                y=_axis(table, metric),
                series=series,
                ticks=sorted(places.values()),
                log_x=table.plot.log and not bars,
                bars=bars,
                paper="paper" if scale == "paper" else PAPER,
            )
            found.append(panel)
    return found


def axes(table: Table) -> tuple[Sequence[Line], Sequence[Line]]:
    """Return what lies along the x axis and what is a line: columns and rows, or the reverse."""
    only_rows = any(r.x is not None for r in table.rows) and all(c.x is None for c in table.columns)
    return (table.rows, table.columns) if only_rows else (table.columns, table.rows)


def placed(along: Sequence[Line], even: bool) -> Placed:
    """Return each line's place: its x, or its number where one has none or bars stand evenly."""
    if even or any(line.x is None for line in along):
        return {line.key: (float(n), line.label) for n, line in enumerate(along)}
    return {line.key: (float(line.x), f"{line.x:g}") for line in along}


def _measured(entry: Entry, metric: str | None) -> Entry:
    """Return an entry with another metric; the paper's value is of its own metric alone."""
    if metric in (None, entry.metric):
        return entry
    row = dataclasses.replace(entry.row, reported={})
    return dataclasses.replace(entry, metric=metric, row=row)


def _series(
    number: int, line: Line, along: Sequence[Line], places: Placed, every: Entries
) -> Series:
    """Return the points of a line and those of the paper; entries by line and place."""
    points: list[Point] = []
    paper = []
    for other in along:
        entry, x = every[line.key, other.key], places[other.key][0]
        points += spread(entry, x)
        value = reported.value(entry.paper)
        paper += [] if value is None else [(x, value)]
    return Series(line.label, number, sorted(points), sorted(paper))


def _axis(table: Table, metric: str | None) -> str:
    """Return the label of the y axis."""
    name = metrics.title(metric or table.metric).removesuffix(" of the last epoch")
    return f"{name} ({table.unit})" if table.unit else name

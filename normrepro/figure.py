"""The figure of a table: its metric per epoch, the same bytes for the same records (SVG and PNG).

Rows differ in line style and marker as well as in color (Okabe and Ito's palette, which the
color-blind can tell apart), so that a print in black and white can be read.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from normrepro.columns import Found
from normrepro.record import Record
from normrepro.tables import Line, Table

COLORS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 5))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
FIXED = {"svg.hashsalt": "normrepro", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
Curve = list[tuple[float, float, float, float]]  # epoch, mean, least, largest


def write(table: Table, scale: str, found: Found, folder: Path) -> bool:
    """Draw a table's metric per epoch into SVG and PNG; say whether there was anything to draw."""
    panels = _panels(table, found)
    if not panels:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with style.context("default"), matplotlib.rc_context(FIXED):  # whatever the user's own settings
        drawn = Figure(figsize=(1 + 5.5 * len(panels), 4), dpi=120, layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(1, len(panels), squeeze=False)[0]
        for axis, (column, curves) in zip(axes, panels, strict=True):
            _draw(axis, table, column, curves)
        drawn.suptitle(
            f"{table.label}, scale: {scale}: mean of the seeds, band from least to largest",
            fontsize="medium",
        )
        path = folder / f"{table.key}.{scale}"
        drawn.savefig(f"{path}.svg", metadata={"Date": None, "Creator": None})
        drawn.savefig(f"{path}.png", metadata={"Software": None})
    return True


def _panels(table: Table, found: Found) -> list[tuple[Line, dict[str, Curve]]]:
    """Return the curves of every column; columns of the same runs and metric share a panel."""
    panels, seen = [], set()
    for column in table.columns:
        metric = metric_of(table, column)
        entries = {row.label: found[row.key, column.key] for row in table.rows}
        runs = frozenset(run["run"] for entry in entries.values() for run in entry.values())
        curves = {label: curve(entry, metric) for label, entry in entries.items()}
        if any(curves.values()) and (metric, runs) not in seen:
            seen.add((metric, runs))
            panels.append((column, curves))
    return panels


def metric_of(table: Table, column: Line) -> str:
    """Return the key of a column's metric in the history, which knows no best epoch."""
    return (column.metric or table.metric).removeprefix("best_")


def curve(entry: Mapping[int, Record], metric: str) -> Curve:
    """Return mean, least and largest per epoch; a diverged run is in while it lasts."""
    by_epoch: dict[float, list[float]] = {}
    for _, run in sorted(entry.items()):
        for line in run.get("history", []):
            if line.get(metric) is not None:
                by_epoch.setdefault(line["epoch"], []).append(line[metric])
    return [(e, statistics.fmean(own), min(own), max(own)) for e, own in sorted(by_epoch.items())]


def _draw(axis: Axes, table: Table, column: Line, curves: Mapping[str, Curve]) -> None:
    """Draw one panel: a line of the mean per row, a band from the least seed to the largest."""
    for i, (label, points) in enumerate(curves.items()):
        if not points:
            continue
        epochs, means, low, high = map(list, zip(*points, strict=True))
        color, every = COLORS[i % len(COLORS)], max(1, len(points) // 10)
        axis.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
        axis.plot(
            epochs,
            means,
            color=color,
            linestyle=DASHES[i % len(DASHES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            markevery=(i % every, every),  # shifted, so that the markers of close lines do not hide
            label=label,
        )
    axis.set(xlabel="epoch", ylabel=f"{metric_of(table, column)} ({table.unit})")
    axis.set_title(column.label, fontsize="medium")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(visible=True, alpha=0.3)
    axis.legend(fontsize="small")

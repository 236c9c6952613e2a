"""One panel of a figure: series of points with a band, bars or hollow markers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

COLORS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 5))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
HATCHES = ["", "///", "...", "xx", "\\\\\\", "++", "oo", "--"]
SLANTED = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"}
PAPER = "paper (full scale)"
Point = tuple[float, float, float, float]  # x, mean, least, largest


@dataclass(frozen=True)
class Series:
    """One row of the table: its points, and the paper's own (x, value) where they are numbers."""

    label: str
    number: int  # in the table: decides over color, dash, marker and hatch
    points: Sequence[Point]
    paper: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows."""

    title: str
    about: str  # what the marks are, for the figure's title
    x: str
    y: str
    series: Sequence[Series]
    ticks: Sequence[tuple[float, str]] = ()
    log_x: bool = False
    log_y: bool = False
    bars: bool = False
    paper: str = PAPER

    def labels(self) -> list[str]:
        """Return what a legend would list."""
        return [series.label for series in self.series if series.points or series.paper]

    def told(self) -> Any:
        """Return all that it shows, for JSON."""
        return asdict(self)

    def draw(self, axis: Axes, legend: bool = True) -> None:
        """Draw it, with a legend or as a neighbor of a panel that has it."""
        for position, series in enumerate(self.series):
            (self._bars if self.bars else self._line)(axis, series, position)
        if any(series.paper for series in self.series):
            axis.plot([], [], **_hollow("#444444", "o"), label=self.paper)
        axis.set(xlabel=self.x, ylabel=self.y)
        axis.set_title(self.title, fontsize="medium")
        self._mark(axis)
        axis.grid(visible=True, alpha=0.3)
        axis.set_axisbelow(True)
        if legend:
            axis.legend(fontsize="small")

    def _mark(self, axis: Axes) -> None:
        """Set the scales, and the ticks of the x axis."""
        if self.log_x:
            axis.set_xscale("log", base=2)
        if self.log_y:
            axis.set_yscale("log")
        if self.ticks:
            places, labels = zip(*self.ticks, strict=True)
            axis.xaxis.set_major_locator(FixedLocator(places))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticklabels(labels, fontsize="small", **(SLANTED if _long(labels) else {}))
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    def _line(self, axis: Axes, series: Series, _: int) -> None:
        """Draw a line of the means, a band over the seeds, the paper's points."""
        color, marker = COLORS[series.number % 8], MARKERS[series.number % 8]
        if series.points:
            x, means, low, high = map(list, zip(*series.points, strict=True))
            every = max(1, len(x) // 10)
            axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            axis.plot(
                x,
                means,
                color=color,
                linestyle=DASHES[series.number % 8],
                marker=marker,
                markersize=4,
                markevery=(
                    series.number % every,
                    every,
                ),  # so that close lines' markers do not hide
                label=series.label,
            )
        for x, value in series.paper:
            axis.plot([x], [value], **_hollow(color, marker))

    def _bars(self, axis: Axes, series: Series, position: int) -> None:
        """Draw bars of the means, lines from the least seed to the largest, the paper's points."""
        color, width = COLORS[series.number % 8], 0.8 / len(self.series)
        shift = (position - (len(self.series) - 1) / 2) * width
        if series.points:
            x, means, low, high = map(list, zip(*series.points, strict=True))
            reach = [[m - a for m, a in zip(means, low, strict=True)]]
            reach += [[b - m for m, b in zip(means, high, strict=True)]]
            axis.bar(
                [own + shift for own in x],
                means,
                width,
                yerr=reach,
                capsize=2,
                facecolor=f"{color}66",
                edgecolor=color,
                hatch=HATCHES[series.number % 8],
                label=series.label,
            )
        for x, value in series.paper:
            axis.plot([x + shift], [value], **_hollow(color, MARKERS[series.number % 8]))


def _hollow(color: str, marker: str) -> dict[str, Any]:
    """Return the style of the paper's points."""
    return {
        "linestyle": "",
        "marker": marker,
        "markerfacecolor": "white",
        "markeredgecolor": color,
        "markersize": 7,
    }


def _long(labels: Sequence[str]) -> bool:
    """Say whether labels would run into each other."""
    return sum(map(len, labels)) > 50

"""The figure of a table: the same bytes for the same records, as SVG and PNG.

Rows differ in line style, marker and hatch as well as in color (Okabe and Ito's palette, which the
color-blind can tell apart), so that a print in black and white can be read.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from normrepro.report.entries import Entries
from normrepro.report.plots import curves, layers, points
from normrepro.report.plots.panel import Panel
from normrepro.tables import Table

KINDS: dict[str, Callable[[Table, str, Entries], list[Panel]]] = {
    "curves": curves.panels,
    "lines": points.lines,
    "bars": points.bars,
    "layers": layers.panels,
}
FIXED = {"svg.hashsalt": "normrepro", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
ABREAST = 3  # panels


def write(table: Table, scale: str, every: Entries, folder: Path) -> bool:
    """Draw a table's plot into SVG and PNG; say whether there was anything to draw.

    A figure that was drawn from the same numbers by the same code is left as it is.
    """
    panels = KINDS[table.plot.kind](table, scale, every)
    if not panels:
        return False
    path = folder / f"{table.key}.{scale}"
    title = f"{table.label}, scale: {scale}: {panels[0].about}"
    digest = _digest(title, panels)
    if not _is_drawn(path, digest):
        folder.mkdir(parents=True, exist_ok=True)
        _draw(title, panels, path, digest)
    return True


def _digest(title: str, panels: Sequence[Panel]) -> str:
    """Return the hash of all that decides over the figure's bytes."""
    told = json.dumps([title, [panel.told() for panel in panels], _code(), matplotlib.__version__])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """Return the hash of the code that draws."""
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _is_drawn(path: Path, digest: str) -> bool:
    """Say whether both files are there, and the SVG says that it shows just this."""
    svg, png = (Path(f"{path}.{ending}") for ending in ("svg", "png"))
    if not (svg.exists() and png.exists()):
        return False
    with open(svg, encoding="utf-8") as file:
        return f"drawn from {digest}" in file.read(2000)


def _draw(title: str, panels: Sequence[Panel], path: Path, digest: str) -> None:
    """Draw panels side by side, so many abreast, and save them twice."""
    wide = min(len(panels), ABREAST)
    tall = -(-len(panels) // wide)
    with style.context("default"), matplotlib.rc_context(FIXED):  # whatever the user's own settings
        drawn = Figure(figsize=(1 + 5.5 * wide, 4 * tall), dpi=120, layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(tall, wide, squeeze=False).flatten()
        for number, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
            panel.draw(axis, number == 0 or panel.labels() != panels[0].labels())
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        drawn.suptitle(title, fontsize="medium")
        about = {"Date": None, "Creator": None, "Description": f"drawn from {digest}"}
        drawn.savefig(f"{path}.png", metadata={"Software": None})
        drawn.savefig(f"{path}.svg", metadata=about)  # last: it says that both are there

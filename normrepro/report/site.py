"""``index.html``: the index as one file that needs no other, with every table's grid and plot."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from normrepro.blocks import Block, Grid, Picture, Points, Title, hypertext, inline
from normrepro.report import grids, index
from normrepro.report.entries import entries
from normrepro.report.index import State
from normrepro.report.page import legend, progress, reasons, sentence

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
  color: #111; background: #fff }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .3em .7em; text-align: left; vertical-align: top }
.numbers td + td, .numbers th + th { text-align: right }
th { border-bottom: 2px solid #555; cursor: pointer }
th[aria-sort]::after { content: " \\25B2" }
th[aria-sort=descending]::after { content: " \\25BC" }
img { max-width: 100% }
summary { font-weight: 600; margin: .6em 0 }
"""
# A click on a heading sorts the table by that column, numbers before words; again, the other way.
SCRIPT = """
document.querySelectorAll('th').forEach(th => th.addEventListener('click', () => {
  const up = th.getAttribute('aria-sort') !== 'ascending';
  const body = th.closest('table').tBodies[0];
  const number = text => { const n = parseFloat(text); return isNaN(n) ? Infinity : n; };
  const text = row => row.cells[th.cellIndex].textContent;
  const order = (a, b) => (number(text(a)) - number(text(b))) || text(a).localeCompare(text(b));
  const rows = [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a));
  th.parentElement.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  body.append(...rows);
}));
"""


def document(states: Sequence[State], results: Path) -> str:
    """Return the whole page; plots are taken from the results' folder of figures."""
    about = index.ABOUT.partition(" [index.html]")[0] + " A click on a heading sorts."
    blocks: list[Block] = [Title("Results", 1), about, index.totals(states)]
    blocks.append(Grid(["paper", *index.HEAD], listing(states), numbers=False))
    details = "\n".join(section(state, scale, results) for state in states for scale in state.begun)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>normrepro: results</title>\n'
        f"<style>{STYLE}</style></head>\n<body>\n{hypertext(blocks)}\n{details}\n"
        f"<script>{SCRIPT}</script>\n</body></html>\n"
    )


def listing(states: Sequence[State]) -> list[list[str]]:
    """Return the index's lines with the paper in front."""
    return [[state.table.short, *row] for state in states for row in index.rows([state])]


def section(state: State, scale: str, results: Path) -> str:
    """Return a table's grids and its plot, folded up."""
    table, found = state.table, state.found[scale]
    every = entries(table, found)
    blocks: list[Block] = [
        f"**Scale: {sentence(scale)}.** {table.title} ({table.source}).",
        f"{progress(table, scale, found)} {legend(table, every)}",
        *grids.results(table, scale, every),
        Points(reasons(every)),
        *picture(results / "figures" / f"{table.key}.{scale}.svg", f"{table.label}, {scale}"),
        f"[the whole page]({table.key}.{scale}.md)",
    ]
    title = inline(f"{table.label}, scale: {scale}")
    name = html.escape(f"{table.key}.{scale}")
    head = f'<details id="{name}"><summary>{title}</summary>'
    return f"{head}\n{hypertext(blocks)}\n</details>"


def picture(path: Path, title: str) -> list[Block]:
    """Return a figure as data within the page, nothing where there is none."""
    if not path.exists():
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return [Picture(title, f"data:image/svg+xml;base64,{data}")]

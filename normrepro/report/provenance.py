"""Where a table's numbers come from: what the scale replaced, code, machines, the command."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from normrepro.blocks import Grid, Points
from normrepro.record import Record
from normrepro.report.entries import Found
from normrepro.tables import Line, Table, overlay, override_key

ENVIRONMENT = {
    "python": "Python",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "hydra": "hydra-core",
    "numpy": "numpy",
    "cpu": "processor",
    "cores": "cores",
    "gpu": "GPU",
    "platform": "platform",
}


def protocol(table: Table, scale: str) -> Grid:
    """Return the table's overrides beside what the scale puts in their place."""
    own = table.scale(scale)
    lines = [("all cells", table.base, own.base)]
    lines += [_line(line, own.rows.get(line.key, ())) for line in table.rows]
    lines += [_line(line, own.columns.get(line.key, ())) for line in table.columns]
    rows = [_protocol_row(*line) for line in lines if line[1] or line[2]]
    return Grid(["", "the paper's protocol", f"here (scale: {scale})"], rows, numbers=False)


def _line(line: Line, replaced: tuple[str, ...]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the label of a row or column, its overrides and the scale's."""
    return line.label, line.overrides, replaced


def _protocol_row(label: str, paper: tuple[str, ...], replaced: tuple[str, ...]) -> list[str]:
    """Return what the paper's protocol sets beside what the scale sets."""
    here = overlay([paper, replaced])
    changed = set(here) != set(paper)
    return [label, _code(paper), _code(here) if changed else "the same"]


def _code(overrides: tuple[str, ...]) -> str:
    """Return overrides as inline code."""
    ordered = sorted(overrides, key=lambda override: "." in override_key(override))
    return f"`{' '.join(ordered)}`" if ordered else "the recipe's"


def describe(records: Iterable[Record]) -> Points:
    """Return commits, versions, hardware, threads, time and seeds of the runs as a list."""
    runs = sorted({record["run"]: record for record in records}.values(), key=lambda r: r["run"])
    if not runs:
        return Points(["no run yet"])
    seconds = sum(run["seconds"] for run in runs)
    seeds = sorted({run["config"]["seed"] for run in runs})
    counts = {tuple(run["data"].get(key) for key in ("train", "val", "classes")) for run in runs}
    lines = [
        f"runs: {len(runs)}, {seconds:,.0f} seconds of computing in total",
        f"seeds: {', '.join(map(str, seeds))}",
        *[f"data: {t} training images, {v} to judge, {c} classes" for t, v, c in sorted(counts)],
        f"commit: {_counted(_commit(run) for run in runs)}",
        f"threads of a process: {_counted(run['environment'].get('threads') for run in runs)}",
        f"compiled kernels: {_counted(run['environment'].get('kernels') for run in runs)}",
        f"processes of a run: {_counted(run['environment'].get('world') for run in runs)}",
    ]
    for key, title in ENVIRONMENT.items():
        lines.append(f"{title}: {_counted(run['environment'].get(key) for run in runs)}")
    notes = sorted({note for run in runs for note in run.get("notes", [])})
    return Points([*lines, *[f"note of a run: {note}" for note in notes]])


def _commit(run: Record) -> str | None:
    """Return a run's commit, and whether the code had changes beyond it."""
    commit, dirty = run["environment"].get("commit"), run["environment"].get("dirty")
    return f"{commit} with uncommitted changes" if commit and dirty else commit


def _counted(found: Iterable[Any]) -> str:
    """Return what the runs say, each with the number of its runs where they disagree."""
    counts = Counter("none" if one is None else str(one) for one in found)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{one} ({count} runs)" for one, count in sorted(counts.items()))


def command(table: Table, scale: str, found: Found) -> str:
    """Return the command that makes the table again."""
    seeds = max((max(entry) + 1 for entry in found.values() if entry), default=None)
    count = table.scale(scale).seeds if seeds is None else seeds
    return f"python scripts/reproduce.py {table.paper} {table.name} --scale {scale} --seeds {count}"

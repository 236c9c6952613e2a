"""What tables still need: their cells with their state, the exact commands, the GPU-hours."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from normrepro import papers
from normrepro.blocks import grid
from normrepro.checks import ConfigError
from normrepro.launch.cost import PASSES, THROUGHPUT, run_hours
from normrepro.record import ROOT, Record, read_result
from normrepro.tables import Cell, Table
from normrepro.training import lock

LOCAL_SCALES = ("proxy",)  # where a record made elsewhere is no substitute for the local run
STATES = ("done", "diverged", "running", "missing")


def ended(cell: Cell, scale: str, records: Mapping[str, Record], runs: Path) -> Record | None:
    """Return the record that makes a cell's run unnecessary, None where it is still to do.

    At proxy that is the run's own ``result.json``; elsewhere a record among the results is enough.
    """
    local = read_result(runs / cell.run / "result.json")
    return local if local or scale in LOCAL_SCALES else records.get(cell.run)


def chosen(paper: str, name: str | None, scale: str) -> tuple[list[Table], list[str]]:
    """Return the tables that are asked for, and why others of them cannot be made.

    Args:
        paper: A paper's name, or "all".
        name: A table or figure, or a figure without the letter of its panels; None takes all.
        scale: The scale to make them at.
    """
    if name is not None:
        tables = papers.load_panels(paper, name)
        if not tables[1:]:
            tables[0].scale(scale)  # or an error that says what there is
    else:
        tables = papers.load_all() if paper == "all" else list(papers.load(paper).values())
    why = {table.label: obstacle(table, scale) for table in tables}
    return (
        [table for table in tables if not why[table.label]],
        [f"{label}: {reason}" for label, reason in why.items() if reason],
    )


def obstacle(table: Table, scale: str) -> str:
    """Return why a table cannot be made at a scale, nothing where it can."""
    return table.obstacle or ("" if scale in table.scales else f"has no scale={scale}")


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Return one cell per run, in order; cells may share a run."""
    return list({cell.run: cell for cell in reversed(list(cells))}.values())[::-1]


def command(cell: Cell, gpus: int = 1) -> list[str]:
    """Return the command that trains a cell's run, on one process or one per GPU."""
    start = ["torchrun", "--standalone", f"--nproc_per_node={gpus}"] if gpus > 1 else ["python"]
    return [*start, "train.py", *cell.overrides]


@dataclass(frozen=True)
class Plan:
    """One run: its cell, its state (one of STATES), who has it, its cost if that is known."""

    cell: Cell
    state: str
    who: str
    hours: float | None

    @property
    def open(self) -> bool:
        """Whether its hours are still to be spent."""
        return self.state in ("running", "missing")


def plan(
    cells: Iterable[Cell], scale: str, records: Mapping[str, Record], throughput: float, runs: Path
) -> dict[str, Plan]:
    """Return the plan of every run of some cells."""
    found = {}
    for cell in distinct(cells):
        state, who = state_of(cell, scale, records, runs)
        found[cell.run] = Plan(cell, state, who, run_hours(cell.overrides, throughput))
    return found


def state_of(cell: Cell, scale: str, records: Mapping[str, Record], runs: Path) -> tuple[str, str]:
    """Return a cell's state, and who trains it where somebody does."""
    record = ended(cell, scale, records, runs)
    if record is not None:
        return record["status"].replace("finished", "done"), ""
    folder = runs / cell.run
    holder = lock.holder(folder) if folder.is_dir() else None
    return ("missing", "") if holder is None else ("running", lock.describe(folder, holder))


def render(
    table: Table,
    scale: str,
    records: Mapping[str, Record],
    seeds: int | Sequence[int] | None = None,
    gpus: int = 1,
    throughput: float = THROUGHPUT,
    runs: Path = ROOT / "runs",
) -> str:
    """Return the plan of a table: a row per cell, the commands of missing runs, the hours."""
    cells = table.cells(scale, seeds)
    plans = plan(cells, scale, records, throughput, runs)
    rows = [
        [c.row, c.column, str(c.seed), plans[c.run].state, _hours([plans[c.run]]), f"`{c.run}`"]
        for c in cells
    ]
    missing = [own for own in plans.values() if own.state == "missing"]
    parts = [
        f"# Plan of {table.paper} {table.name}, scale: {scale}",
        f"{_counts(plans.values())}.",
        grid(["row", "column", "seed", "state", "GPU-hours", "run"], rows),
        "\n".join(f"- {own.who}" for own in plans.values() if own.who),
        _cost(plans.values(), throughput),
        _commands([own.cell for own in missing], gpus),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview(
    tables: Sequence[Table],
    others: Sequence[str],
    scale: str,
    records: Mapping[str, Record],
    seeds: int | Sequence[int] | None = None,
    throughput: float = THROUGHPUT,
    runs: Path = ROOT / "runs",
) -> str:
    """Return a line per table, and totals in which a run that several tables share counts once."""
    rows, cells, broken = [], [], list(others)
    for table in tables:
        try:
            own = table.cells(scale, seeds)
        except ConfigError as error:
            broken.append(f"{table.label}: {error}")
            continue
        cells += own
        rows.append((table.label, {cell.run for cell in own}))
    plans = plan(cells, scale, records, throughput, runs)
    lines = [_line(label, [plans[run] for run in names]) for label, names in rows]
    lines.append(_line("all, shared runs once", list(plans.values())))
    parts = [
        f"# Plan of {len(rows)} tables and figures, scale: {scale}",
        f"{_counts(plans.values())}.",
        grid(["table", "runs", *STATES, "GPU-hours left", "in all"], lines),
        _cost(plans.values(), throughput),
        "\n".join(f"- {own.who}" for own in plans.values() if own.who),
        "\n".join(f"- {reason}" for reason in broken),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(label: str, plans: Sequence[Plan]) -> list[str]:
    """Return one line of the overview."""
    counts = [sum(own.state == state for own in plans) for state in STATES]
    left = [own for own in plans if own.open]
    return [label, *map(str, (len(plans), *counts)), _hours(left), _hours(plans)]


def _counts(plans: Iterable[Plan]) -> str:
    """Say how many runs there are in every state that any is in."""
    states = [own.state for own in plans]
    ended_ones = sum(state in ("done", "diverged") for state in states)
    running, missing = states.count("running"), states.count("missing")
    middle = f"; {running} are running" if running else ""
    return f"{ended_ones} of {len(states)} runs are done{middle}; {missing} are missing"


def _cost(plans: Iterable[Plan], throughput: float) -> str:
    """Say what is left to be spent."""
    plans = list(plans)
    unknown = sum(own.hours is None for own in plans)
    more = f" {unknown} runs are on data of unknown size and not in the sum." if unknown else ""
    return (
        f"GPU-hours: {_hours([own for own in plans if own.open])} missing of {_hours(plans)} in "
        f"all, at an assumed {throughput:g} TFLOP/s per GPU (`--tflops` changes it): "
        f"FLOPs of one image's forward pass x {PASSES} x images.{more}"
    )


def _hours(plans: Sequence[Plan]) -> str:
    """Return hours with as many digits as the estimate deserves."""
    known = [own.hours for own in plans if own.hours is not None]
    if plans and not known:
        return "?"
    hours = sum(known)
    if 0 < hours < 0.01:
        return "< 0.01"
    return f"{hours:.2f}" if hours < 10 else f"{hours:,.0f}"


def _commands(missing: Sequence[Cell], gpus: int) -> str:
    """Return the commands of the missing runs as a block."""
    if not missing:
        return ""
    lines = "\n".join(shlex.join(command(cell, gpus)) for cell in missing)
    return f"Commands of the missing runs:\n\n```bash\n{lines}\n```"

"""What a table still needs: its cells with their state, the exact commands, the GPU-hours.

The hours are an estimate: floating point operations of one image's forward pass (torch's counter,
which sees convolutions and matrix products, on the meta device), times three for the backward pass,
times the images of the run, over a sustained throughput that is assumed and can be changed.
"""

import functools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from normrepro import config, papers
from normrepro.blocks import grid
from normrepro.record import ROOT, Record, read_result
from normrepro.tables import Cell, Table

THROUGHPUT = (
    10.0  # TFLOP/s, assumed: what a V100-class GPU sustains on a ResNet-50 in mixed precision
)
PASSES = 3  # forward, and a backward pass of twice its cost
LOCAL_SCALES = ("proxy",)  # where a record made elsewhere is no substitute for the local run


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
        name: A table or figure; None takes all.
        scale: The scale to make them at.
    """
    if name is not None:
        table = papers.load_table(paper, name)
        table.scale(scale)  # or an error that says what there is
        return [table], []
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


def gpu_hours(cfg: DictConfig, throughput: float = THROUGHPUT) -> float:
    """Estimate the GPU-hours of a run at a throughput in TFLOP/s."""
    return flops_per_image(cfg) * PASSES * images(cfg) / (throughput * 1e12) / 3600


def images(cfg: DictConfig) -> int:
    """Return the number of images that a run trains on, each pass over one counted."""
    steps = cfg.recipe.steps
    if steps is None:
        if cfg.data.expect.train is None:
            raise config.ConfigError(
                f"data={cfg.data.name} does not say how many images it has: "
                "set data.expect.train or recipe.steps"
            )
        steps = cfg.recipe.epochs * (cfg.data.expect.train // cfg.batch.total)
    return min(steps, cfg.scale.max_steps or steps) * cfg.batch.total


def flops_per_image(cfg: DictConfig) -> int:
    """Count the operations of one image's forward pass; a multiply-add is two."""
    build = OmegaConf.to_container(cfg.model.build, resolve=True)
    return _flops(json.dumps(build), cfg.data.expect.classes, cfg.data.channels, cfg.data.size)


@functools.cache
def _flops(build: str, classes: int, channels: int, size: int) -> int:
    """Count the forward pass of a model, given as JSON so that equal models are counted once."""
    import torch  # here: the driver asks this module what to do and trains nothing itself
    from hydra.utils import instantiate
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = instantiate(json.loads(build), num_classes=classes).eval()
        example = torch.zeros(1, channels, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops()


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
    states = {cell.run: ended(cell, scale, records, runs) for cell in cells}
    missing = [cell for cell in distinct(cells) if states[cell.run] is None]
    hours = {c.run: gpu_hours(config.compose(c.overrides), throughput) for c in distinct(cells)}
    rows = [
        [c.row, c.column, str(c.seed), _state(states[c.run]), _hours(hours[c.run]), f"`{c.run}`"]
        for c in cells
    ]
    total, left = sum(hours.values()), sum(hours[cell.run] for cell in missing)
    count = len(states) - len(missing)
    parts = [
        f"# Plan of {table.paper} {table.name}, scale: {scale}",
        f"{count} of {len(states)} runs are done; {len(missing)} are missing.",
        grid(["row", "column", "seed", "state", "GPU-hours", "run"], rows),
        f"GPU-hours: {_hours(left)} missing of {_hours(total)} in all, at an assumed "
        f"{throughput:g} TFLOP/s per GPU (`--tflops` changes it): "
        f"FLOPs of one image's forward pass x {PASSES} x images.",
        _commands(missing, gpus),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _hours(hours: float) -> str:
    """Return hours with as many digits as the estimate deserves."""
    if 0 < hours < 0.01:
        return "< 0.01"
    return f"{hours:.2f}" if hours < 10 else f"{hours:,.0f}"


def _state(record: Record | None) -> str:
    """Return the word for a cell's state."""
    return "missing" if record is None else record["status"].replace("finished", "done")


def _commands(missing: Sequence[Cell], gpus: int) -> str:
    """Return the commands of the missing runs as a block."""
    if not missing:
        return ""
    lines = "\n".join(shlex.join(command(cell, gpus)) for cell in missing)
    return f"Commands of the missing runs:\n\n```bash\n{lines}\n```"

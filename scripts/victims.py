"""What chaos.py kills: runs, ranks, merges and drivers of seconds, and what each must leave."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from normrepro.record import read_records
from scripts import faults, forked

Start = Callable[..., list[BaseProcess]]
CLOCKS = ("seconds", "images_per_second")
SMALL = [
    *("data=digits", "data.source.train_images=128", "model.build.depth=8", "model.build.width=4"),
    *("batch.total=32", "recipe.epochs=3", "norm=mabn", "batch.devices=2", "precision=float64"),
]  # 12 steps, a checkpoint after each
RUN = [*SMALL, "run.save_every=0", "run.wandb=disabled", "run.timeout=60"]
PAPER = f"""
title: A table to be killed
venue: none
short: Chaos
tables:
  1:
    title: runs of a second
    source: none
    metric: error
    unit: "%"
    better: lower
    decimals: 2
    base: [{", ".join(SMALL)}]
    columns: {{error: {{label: error}}}}
    rows:
      bn: {{label: BN, overrides: [norm=bn], reported: {{error: null}}}}
      mabn: {{label: MABN, overrides: [norm=mabn], reported: {{error: null}}}}
    scales:
      proxy: {{seeds: 2, base: []}}
"""


@dataclass
class Kind:
    """One kind of victim."""

    name: str
    start: Start
    left: Callable[[Path], Any]
    share: float  # of all kills
    planted: bool = False  # it dies in a write; else at any moment
    kills: int = 0
    lost: list[str] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)


def kinds() -> list[Kind]:
    return [
        Kind("a run, at any moment", alone, left_by_run, 0.28),
        Kind("a run, writing a file", alone, left_by_run, 0.30, planted=True),
        Kind("one rank of two", ranks, left_by_run, 0.20),
        Kind("merging records", merging, left_by_merging, 0.20, planted=True),
        Kind("the driver of a table", driver, left_by_driver, 0.02),
    ]


# -- what is started, and what it leaves -----------------------------------------------------------


def alone(folder: Path, prepare: Callable[[], None] | None = None) -> list[BaseProcess]:
    return [forked.start([*RUN, f"run.root={folder}"], folder / "log", prepare=prepare)]


def ranks(folder: Path, prepare: None = None) -> list[BaseProcess]:
    return forked.start_ranks([*RUN, f"run.root={folder}"], folder / "log")


def merging(folder: Path, prepare: Callable[[], None] | None = None) -> list[BaseProcess]:
    target = [str(folder / "records.jsonl")]
    return [forked.start(target, folder / "log", script="scripts/faults.py", prepare=prepare)]


def driver(folder: Path, prepare: None = None) -> list[BaseProcess]:
    places = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    (folder / "papers").mkdir(exist_ok=True)
    (folder / "papers" / "chaos.yaml").write_text(PAPER)
    return [
        forked.start(
            ["chaos", "table1", "--jobs", "2", *places],
            folder / "log",
            script="scripts/reproduce.py",
            prepare=partial(faults.other_papers, folder / "papers"),
        )
    ]


def left_by_run(folder: Path) -> Any:
    (run,) = (path.parent for path in folder.glob("*/result.json"))
    record = json.loads((run / "result.json").read_text())
    return bits([torch.load(run / "last.pt", weights_only=True), record])


def left_by_merging(folder: Path) -> Any:
    return (folder / "records.jsonl").read_bytes()


def left_by_driver(folder: Path) -> Any:
    results = folder / "results"
    text = (results / "chaos_table1.proxy.md").read_text().splitlines()
    weights = [
        torch.load(path, weights_only=True) for path in sorted(folder.glob("runs/*/last.pt"))
    ]
    table = [line for line in text if "seconds of computing" not in line]
    return bits([table, read_records(results / "records.jsonl"), weights])


def bits(value: Any) -> Any:
    """Return a nest of values in a form that compares bit by bit, without clocks and folders."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items() if k not in CLOCKS and k != "run"} | (
            {"run": value["run"]} if isinstance(value.get("run"), str) else {}
        )
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value

"""What tests share: starting real runs, and comparing what they leave."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# A run of seconds: a plain 8-layer net on a few digits.
SMALL = [
    "data=digits",
    "data.source.train_images=256",
    "model.build.depth=8",
    "model.build.width=4",
    "batch.total=32",
]
TIMES = ("seconds", "images_per_second")


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: no W&B, one thread, a fixed place for the package."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return (
        clean | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more
    )


def command(overrides: Sequence[str], processes: int = 1) -> list[str]:
    """The command line of a run."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*start, str(ROOT / "train.py"), *overrides]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.py to its end in a process of its own, with its runs below tmp_path/<root>."""

    def run(
        *overrides: str, root: str = "runs", processes: int = 1, **env: str
    ) -> subprocess.CompletedProcess[str]:
        arguments = [*SMALL, *overrides, f"run.root={tmp_path / root}"]
        return subprocess.run(
            command(arguments, processes),
            capture_output=True,
            text=True,
            env=environment(**env),
            cwd=tmp_path,
            timeout=240,
        )

    return run


def only_run(root: Path) -> Path:
    """The directory of the single run below a root."""
    (folder,) = (p for p in root.iterdir() if p.is_dir())
    return folder


def result(folder: Path) -> dict[str, Any]:
    """A run's record without its timings."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in TIMES}
        return [strip(v) for v in value] if isinstance(value, list) else value

    record = strip(json.loads((folder / "result.json").read_text()))
    record["config"].pop("run")
    return record


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights and running state that a run ended with."""
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def same_bits(one: Any, other: Any) -> bool:
    """Whether two nests of dicts, lists and tensors are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other

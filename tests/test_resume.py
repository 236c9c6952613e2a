"""A run that is killed ends with the same bits; checkpoints survive damage."""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL, command, environment, only_run, result, same_bits

RUN = ["norm=mabn", "recipe.epochs=12", "run.save_every=0"]  # 96 steps, a checkpoint after each


def kill_somewhere(arguments: list[str], folder: Path, checkpoints: int, **env: str) -> None:
    """Start a run, let it write so many checkpoints, and kill -9 it."""
    child = subprocess.Popen(
        command(arguments),
        env=environment(**env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: set[int] = set()
    deadline = time.monotonic() + 120
    while len(seen) < checkpoints and child.poll() is None and time.monotonic() < deadline:
        for path in folder.glob("*/last.pt"):
            with contextlib.suppress(FileNotFoundError):  # between two renames
                seen.add(path.stat().st_mtime_ns)
    child.send_signal(signal.SIGKILL)
    child.wait()


def saved(folder: Path) -> dict:
    """A checkpoint without what depends on the clock."""
    state = torch.load(only_run(folder) / "last.pt", weights_only=True)
    state["progress"].pop("seconds")
    for row in state["progress"]["history"]:
        row.pop("seconds")
        row.pop("images_per_second")
    state["config"].pop("run")
    return state


@pytest.mark.parametrize("norm", ["mabn", pytest.param("brn", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bits(start: Callable, tmp_path: Path, norm: str) -> None:
    arguments = [f"norm={norm}", *RUN[1:]]
    assert start(*arguments, root="whole").returncode == 0
    killed = tmp_path / "killed"
    moment = random.randint(1, 30)
    kill_somewhere([*SMALL, *arguments, f"run.root={killed}"], killed, moment)
    assert not (only_run(killed) / "result.json").exists(), f"too late to kill: {moment}"
    done = start(*arguments, root="killed")
    assert done.returncode == 0, done.stderr
    assert "goes on at step" in done.stderr
    assert same_bits(saved(tmp_path / "whole"), saved(killed)), f"killed at {moment}"
    assert result(only_run(tmp_path / "whole")) == result(only_run(killed))


def interrupted(start: Callable, tmp_path: Path) -> Path:
    """A run that was killed with both its checkpoints on disk."""
    root = tmp_path / "runs"
    kill_somewhere([*SMALL, *RUN, f"run.root={root}"], root, 5)
    folder = only_run(root)
    assert (folder / "previous.pt").exists()
    return folder


@pytest.mark.parametrize(
    "damage",
    ["flipped", *(pytest.param(d, marks=pytest.mark.slow) for d in ("truncated", "empty"))],
)
def test_a_damaged_checkpoint_falls_back_to_the_previous(
    start: Callable, tmp_path: Path, damage: str
) -> None:
    folder = interrupted(start, tmp_path)
    last = folder / "last.pt"
    content = bytearray(last.read_bytes())
    if damage == "flipped":  # one bit in the middle of a weight
        content[len(content) // 2] ^= 1
    last.write_bytes(
        bytes({"truncated": content[: len(content) // 2], "empty": b""}.get(damage, content))
    )
    done = start(*RUN)
    assert done.returncode == 0, done.stderr
    assert "damaged" in done.stderr
    assert "falling back" in done.stderr
    assert "goes on at step" in done.stderr
    assert start(*RUN, root="whole").returncode == 0
    assert result(folder) == result(only_run(tmp_path / "whole"))


def test_resume_refuses_other_data(start: Callable, tmp_path: Path) -> None:
    folder = interrupted(start, tmp_path)
    state = torch.load(folder / "last.pt", weights_only=True)
    state["data"]["train"] = 999
    torch.save(state, folder / "last.pt")
    done = start(*RUN)
    assert done.returncode == 2
    assert "was begun on data with" in done.stderr
    assert "data.root" in done.stderr


def test_a_finished_run_is_skipped_and_the_same_config_gives_the_same_bits(
    start: Callable, tmp_path: Path
) -> None:
    first = start("norm=brn", "recipe.epochs=2")
    assert first.returncode == 0, first.stderr
    folder = only_run(tmp_path / "runs")
    before = (folder / "result.json").read_bytes()
    again = start("norm=brn", "recipe.epochs=2")
    assert "is finished" in again.stderr
    assert (folder / "result.json").read_bytes() == before
    kept = shutil.move(folder, tmp_path / "first")
    assert start("norm=brn", "recipe.epochs=2").returncode == 0
    assert result(Path(kept)) == result(folder)


def test_a_resume_without_the_kernels_it_was_begun_with_says_so(
    start: Callable, tmp_path: Path
) -> None:
    folder = interrupted(start, tmp_path)
    state = torch.load(folder / "last.pt", weights_only=True)
    state["kernels"] = True  # as if begun where there is a compiler
    torch.save(state, folder / "last.pt")
    done = start(*RUN, NORMREPRO_KERNELS="0")
    assert done.returncode == 0, done.stderr
    assert "last bits may differ" in done.stderr
    assert "last bits may differ" in result(folder)["notes"][0]

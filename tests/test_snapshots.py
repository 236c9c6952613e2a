"""When a run saves: not after every epoch of milliseconds, and always at its end."""

from pathlib import Path

import pytest
import torch

from normrepro import engine
from normrepro.config import compose, run_dir
from normrepro.training import build, checkpoint
from tests.conftest import SMALL

TINY = [*SMALL, "data.source.train_images=64", "batch.total=64", "recipe.epochs=6", "norm=bn"]


@pytest.mark.parametrize(("apart", "saves"), [("5", 1), ("0", 6)])
def test_tiny_epochs_share_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: str, saves: int
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    steps, real = [], checkpoint.save

    def save(folder: Path, state: dict, make_room: bool) -> None:
        steps.append(state["progress"]["step"])
        real(folder, state, make_room)

    monkeypatch.setattr(checkpoint, "save", save)
    # as if an epoch took no time at all, however busy the machine is
    monkeypatch.setattr("normrepro.training.snapshots.time.monotonic", Clock())
    cfg = compose([*TINY, f"run.save_apart={apart}", f"run.root={tmp_path}"])
    run_dir(cfg).mkdir(parents=True)
    engine.run(cfg)
    assert len(steps) == saves
    assert steps[-1] == 6
    assert len(checkpoint.read(run_dir(cfg) / "last.pt")["progress"]["history"]) == 6


class Clock:
    """A clock that moves a microsecond at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


def test_channels_last_is_chosen_where_it_is_faster() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    half = compose(["precision=bfloat16"])
    assert build.channels_last(half, gpu)
    assert not build.channels_last(half, cpu)
    assert build.channels_last(compose(["data=cifar10"]), cpu)
    assert not build.channels_last(compose(["data=imagenet"]), cpu)
    assert not build.channels_last(compose([]), gpu)
    assert build.channels_last(compose(["run.channels_last=true"]), cpu)
    assert not build.channels_last(compose(["run.channels_last=false", "precision=bfloat16"]), gpu)


def test_a_resumed_run_keeps_its_memory_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    place = f"run.root={tmp_path}"
    cfg = compose([*TINY, "run.channels_last=true", place])
    run_dir(cfg).mkdir(parents=True)
    engine.run(cfg)
    (run_dir(cfg) / "result.json").unlink()
    engine.run(compose([*TINY, "run.channels_last=false", place]))
    state = checkpoint.read(run_dir(cfg) / "last.pt")
    assert state["channels_last"] is True
    kernel = state["model"]["layer1.0.conv1.weight"]
    assert kernel.is_contiguous(memory_format=torch.channels_last)

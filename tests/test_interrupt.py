"""Ctrl-C and SIGTERM save at the next step; the exit code says that the run can be resumed."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from normrepro.training.interrupt import AT_ONCE, ECHO, RESUME
from scripts import forked
from tests.conftest import SMALL, only_run, result, same_bits
from tests.test_resume import saved

RUN = [*SMALL, "norm=mabn", "recipe.epochs=12", "run.wandb=disabled"]


def slow_steps() -> None:
    """Make every step wait a little, so that a signal meets a run under way."""
    from normrepro.training.trainer import Trainer

    real = Trainer.step

    def step(self: Trainer, *batch: object) -> object:
        time.sleep(0.05)
        return real(self, *batch)

    Trainer.step = step


def stuck_step() -> None:
    """Let the run's ninth step take for ever."""
    from normrepro.training.trainer import Trainer

    real = Trainer.step

    def step(self: Trainer, *batch: object) -> object:
        while self.state.step == 8:
            time.sleep(0.01)
        return real(self, *batch)

    Trainer.step = step


def wait_for(there: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def ended(process: BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode


def at_work(root: Path) -> Callable[[], bool]:
    """Whether a run below a root has saved a checkpoint."""
    return lambda: any(root.glob("*/last.pt"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert ended(forked.start([*RUN, f"run.root={root}"], root.parent / "log")) == 0
    return root


def assert_same(root: Path, whole: Path) -> None:
    assert same_bits(saved(root), saved(whole))
    assert result(only_run(root)) == result(only_run(whole))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_says_resume_me(tmp_path: Path, whole: Path, number: int) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    arguments = [*RUN, f"run.root={root}", "run.save_apart=0"]
    child = forked.start(arguments, log, prepare=slow_steps)
    wait_for(at_work(root))
    os.kill(child.pid, number)
    assert ended(child) == RESUME
    assert "the same command goes on" in log.read_text()
    assert not (only_run(root) / "result.json").exists()
    steps = saved(root)["progress"]["step"]
    assert 8 <= steps < 96
    assert ended(forked.start(arguments, log)) == 0
    assert f"goes on at step {steps} of 96" in log.read_text()
    assert_same(root, whole)


def test_a_second_ctrl_c_ends_at_once_without_damage(tmp_path: Path, whole: Path) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    arguments = [*RUN, f"run.root={root}", "run.save_apart=0"]
    child = forked.start(arguments, log, prepare=stuck_step)
    wait_for(at_work(root))
    os.kill(child.pid, signal.SIGINT)
    os.kill(child.pid, signal.SIGINT)  # one press reaches some processes twice
    child.join(ECHO + 0.5)
    assert child.exitcode is None
    os.kill(child.pid, signal.SIGINT)
    assert ended(child) == AT_ONCE
    assert ended(forked.start(arguments, log)) == 0
    assert "goes on at step 8 of 96" in log.read_text()
    assert_same(root, whole)


def test_a_signal_before_the_first_step_says_resume_me_too(tmp_path: Path) -> None:
    child = forked.start([*RUN, f"run.root={tmp_path}"], tmp_path / "log", prepare=early_signal)
    assert ended(child) == RESUME


def early_signal() -> None:
    """Send SIGTERM while the model is built."""
    from normrepro.training import build

    build.model = lambda *_: os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.dist
@pytest.mark.parametrize("asked", [pytest.param((0, 1), marks=pytest.mark.slow), (1,)])
def test_two_ranks_stop_at_the_same_step(tmp_path: Path, asked: tuple[int, ...]) -> None:
    arguments = [*RUN, "batch.devices=2", "precision=float64", "run.save_apart=0"]
    root, log = tmp_path / "runs", tmp_path / "log"
    whole = tmp_path / "whole"
    ranks = forked.start_ranks([*arguments, f"run.root={whole}"], tmp_path / "other")
    assert [ended(child) for child in ranks] == [0, 0]
    arguments += [f"run.root={root}"]
    ranks = forked.start_ranks(arguments, log, prepare=[slow_steps, slow_steps])
    wait_for(at_work(root))
    for rank in asked:
        os.kill(ranks[rank].pid, signal.SIGTERM)
    assert [ended(child) for child in ranks] == [RESUME, RESUME]
    assert [ended(child) for child in forked.start_ranks(arguments, log)] == [0, 0]
    assert_same(root, whole)

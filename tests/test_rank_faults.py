"""A rank that raises, dies, hangs or differs ends the job on all ranks, with one error."""

import os
import signal
import time
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from scripts import forked
from tests.conftest import SMALL, only_run, result, same_bits
from tests.test_disk import at_steps
from tests.test_interrupt import ended
from tests.test_resume import saved

pytestmark = pytest.mark.dist
RUN = [
    *SMALL,
    *("norm=bn", "batch.devices=2", "precision=float64", "recipe.epochs=4", "run.wandb=disabled"),
    *("run.save_every=0", "run.timeout=8"),  # 32 steps
]


def start(root: Path, log: Path, step: int, *actions: object, **more: object) -> list[BaseProcess]:
    """Start two ranks, each with something to do before a step."""
    prepare = [partial(at_steps, {step: action}) if action else None for action in actions]
    return forked.start_ranks([*RUN, f"run.root={root}"], log, prepare=prepare, **more)


def codes(ranks: list[BaseProcess]) -> list[int | None]:
    return [ended(rank) for rank in ranks]


def errors(log: Path) -> list[str]:
    """The errors that a job told, of all its ranks."""
    return [line for line in log.read_text().splitlines() if "error: rank" in line]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def break_down() -> None:
    raise ArithmeticError("this rank breaks here")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert codes(start(root, root.parent / "log", 0, None, None)) == [0, 0]
    return root


def assert_goes_on(root: Path, log: Path, whole: Path) -> None:
    assert codes(start(root, log, 0, None, None)) == [0, 0]
    assert "goes on at step" in log.read_text()
    assert same_bits(saved(root), saved(whole))
    assert result(only_run(root)) == result(only_run(whole))


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_raises_is_the_only_one_to_say_so(tmp_path: Path, rank: int) -> None:
    log, actions = tmp_path / "log", [None, None]
    actions[rank] = break_down
    assert codes(start(tmp_path / "runs", log, 5, *actions)) == [1, 1]
    (line,) = errors(log)
    assert line.endswith("this rank breaks here")
    assert f"rank {rank} of digits" in line
    assert log.read_text().count("Traceback") == 1


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_dies_ends_the_job_which_then_goes_on(
    tmp_path: Path, whole: Path, rank: int
) -> None:
    root, log, actions = tmp_path / "runs", tmp_path / "log", [None, None]
    actions[rank] = die
    found = codes(start(root, log, 20, *actions))
    assert found[rank] == -signal.SIGKILL
    assert found[1 - rank] == 1
    (line,) = errors(log)
    assert f"rank {1 - rank} lost another process" in line
    assert "goes on from the last checkpoint" in line
    assert "Traceback" not in log.read_text()
    assert_goes_on(root, log, whole)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_job_within_the_timeout(tmp_path: Path, whole: Path) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    begin = time.monotonic()
    ranks = start(root, log, 20, None, hang)
    assert ended(ranks[0]) == 1
    assert time.monotonic() - begin < 60
    (line,) = errors(log)
    assert "rank 0 lost another process" in line
    assert "did not answer within run.timeout" in line
    os.kill(ranks[1].pid, signal.SIGCONT)  # it wakes up, and finds itself alone
    assert ended(ranks[1]) == 1
    assert_goes_on(root, log, whole)


def test_a_rank_with_another_config_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ranks = start(tmp_path / "runs", log, 0, None, None, more=[["seed=0"], ["seed=1"]])
    assert codes(ranks) == [2, 2]
    (line,) = errors(log)
    assert "the processes differ in their config" in line
    assert "start them all alike" in line
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_rank_that_sees_another_checkpoint_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert codes(start(tmp_path / "runs", log, 20, die, None)) == [-signal.SIGKILL, 1]
    elsewhere = f"run.root={tmp_path / 'elsewhere'}"
    ranks = start(tmp_path / "runs", log, 0, None, None, more=[[], [elsewhere]])
    assert codes(ranks) == [2, 2]
    assert "the processes differ in their checkpoint" in errors(log)[-1]


@pytest.mark.slow
def test_a_rank_that_never_comes_ends_the_wait(tmp_path: Path) -> None:
    log = tmp_path / "log"
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    port = str(forked.free_port())
    child = forked.start([*RUN, f"run.root={tmp_path}"], log, MASTER_PORT=port, **place)
    assert ended(child) == 1
    (line,) = errors(log)
    assert "within run.timeout" in line

"""Disks that are full, read-only or emptied under a run: nothing computed is lost."""

import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from normrepro.training.ending import NOT_SAVED
from scripts import forked
from tests.conftest import SMALL, only_run, result, same_bits
from tests.test_interrupt import ended
from tests.test_resume import saved

RUN = [*SMALL, "norm=bn", "recipe.epochs=4", "run.wandb=disabled", "run.save_every=0"]  # 32 steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert ended(forked.start([*RUN, f"run.root={root}"], root.parent / "log")) == 0
    return root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place])
    if done.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def at_steps(actions: dict[int, Callable[[], None]]) -> None:
    """Do something to the disk before the given steps."""
    from normrepro.training.trainer import Trainer

    real = Trainer.step

    def step(self: Trainer, *batch: object) -> object:
        actions.get(self.state.step, lambda: None)()
        return real(self, *batch)

    Trainer.step = step


def fill(disk: Path) -> None:
    """Write until the disk takes no more."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def free(disk: Path) -> None:
    (disk / "ballast").unlink()


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def assert_same(root: Path, whole: Path) -> None:
    assert same_bits(saved(root), saved(whole))
    assert result(only_run(root)) == result(only_run(whole))


def begin(root: Path, log: Path, **actions: Callable[[], None]) -> int | None:
    """Run with actions before steps: step_<n>=what to do."""
    plan = {int(name.removeprefix("step_")): action for name, action in actions.items()}
    return ended(forked.start([*RUN, f"run.root={root}"], log, prepare=partial(at_steps, plan)))


def test_a_disk_that_is_full_for_a_while_costs_one_warning(
    disk: Path, whole: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert begin(disk / "runs", log, step_10=partial(fill, disk), step_20=partial(free, disk)) == 0
    assert log.read_text().count("no checkpoint can be written (No space left on device)") == 1
    assert log.read_text().count("checkpoints can be written again") == 1
    assert_same(disk / "runs", whole)


@pytest.mark.slow
def test_a_kill_on_a_full_disk_goes_back_to_the_checkpoint_before(
    disk: Path, whole: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert begin(disk / "runs", log, step_10=partial(fill, disk), step_20=die) == -signal.SIGKILL
    free(disk)
    assert begin(disk / "runs", log) == 0
    assert "goes on at step 10 of 32" in log.read_text()
    assert_same(disk / "runs", whole)


def test_a_result_that_cannot_be_written_is_written_by_the_next_start(
    disk: Path, whole: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert begin(disk / "runs", log, step_31=partial(fill, disk)) == NOT_SAVED
    assert "result.json cannot be written (No space left on device): make room" in log.read_text()
    assert "Traceback" not in log.read_text()
    free(disk)
    assert begin(disk / "runs", log, step_31=die) == 0  # no step is taken again
    assert "goes on at step 32 of 32" in log.read_text()
    assert_same(disk / "runs", whole)


def test_a_read_only_disk_is_named_before_any_work(disk: Path, whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert begin(disk / "runs", log, step_10=die) == -signal.SIGKILL
    remount(disk, "ro")
    assert begin(disk / "runs", log) == 2
    assert f"run.root={disk / 'runs'} cannot be written (Read-only" in log.read_text()
    assert "Traceback" not in log.read_text()
    remount(disk, "rw")
    assert begin(disk / "runs", log) == 0
    assert "goes on at step 10 of 32" in log.read_text()
    assert_same(disk / "runs", whole)


def test_a_run_directory_that_vanishes_is_made_anew(tmp_path: Path, whole: Path) -> None:
    root = tmp_path / "runs"
    assert begin(root, tmp_path / "log", step_10=partial(shutil.rmtree, root)) == 0
    assert_same(root, whole)


def no_large_files() -> None:
    """Let every file end at 20 kB: the system refuses the rest of a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    child = forked.start([*RUN, f"run.root={root}"], log, prepare=no_large_files)
    assert ended(child) == NOT_SAVED
    assert log.read_text().count("no checkpoint can be written (File too large)") == 1
    assert not list(root.glob("*/*.pt")) + list(root.glob("*/.last*"))

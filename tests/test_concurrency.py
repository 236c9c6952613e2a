"""Two processes never train the same run: the lock, its lease, and who says so."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from normrepro import record
from normrepro.training import lease, lock
from tests import made_up
from tests.conftest import SMALL, command, environment, only_run, result

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("flock", "lease")
# Holds the lock of a folder until it is killed; says so once it does.
HOLDER = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from normrepro.training import lock
with lock.hold(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def hold_elsewhere(folder: Path, kind: str) -> subprocess.Popen[str]:
    code = HOLDER.format(root=str(ROOT))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), kind], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_excludes_others_and_dies_with_its_holder(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    assert lock.holder(folder) is None
    process = hold_elsewhere(folder, kind)
    try:
        assert lock.holder(folder)["pid"] == process.pid
        for mine in KINDS:  # each sees the other
            with pytest.raises(lock.HeldError, match=f"process {process.pid} on .*, since 2"):
                lock.hold(folder, mine).__enter__()
    finally:
        end(process)
    assert lock.holder(folder) is None
    with lock.hold(folder, kind):
        assert lock.holder(folder)["pid"] == os.getpid()
    assert lock.holder(folder) is None


def test_a_waiting_process_goes_on_when_the_holder_ends(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path, "flock")
    os.kill(process.pid, signal.SIGSTOP)  # neither ended nor at work: still the holder
    with pytest.raises(lock.HeldError):
        lock.hold(tmp_path, wait=0.2).__enter__()
    subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {process.pid}"]).wait()
    with lock.hold(tmp_path, wait=20):
        pass
    process.communicate()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    with lock.hold(tmp_path):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(theirs, b"alive")
            time.sleep(60)
            os._exit(0)
        assert os.read(ours, 5) == b"alive"
    assert lock.holder(tmp_path) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)
    os.close(theirs)


def test_a_lease_that_nobody_touches_runs_out(tmp_path: Path) -> None:
    path = tmp_path / lease.NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2020"}))
    assert lock.holder(tmp_path)["host"] == "elsewhere"
    old = time.time() - lease.EXPIRY - 5
    os.utime(path, (old, old))
    assert lock.holder(tmp_path) is None
    with lock.hold(tmp_path, "lease"):
        assert lock.holder(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.glob(".lease*"))


def test_who_loses_a_lease_ends(tmp_path: Path) -> None:
    code = HOLDER.format(root=str(ROOT)).replace("with lock", "lock.lease.BEAT = 0.05\nwith lock")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "lease"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    (tmp_path / lease.NAME).unlink()
    _, err = process.communicate(timeout=20)
    assert process.returncode == lock.HELD
    assert "another process has taken over" in err


@pytest.mark.dist
def test_the_second_start_of_a_run_says_who_has_it(start: Callable, tmp_path: Path) -> None:
    arguments = [*SMALL, "recipe.epochs=400", f"run.root={tmp_path / 'runs'}"]
    first = subprocess.Popen(
        command(arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/*/last.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        second = start("recipe.epochs=400")
        assert second.returncode == lock.HELD
        assert f"is being trained by process {first.pid} on" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        end(first)


@pytest.mark.slow
@pytest.mark.dist
def test_a_run_that_another_process_finishes_is_taken_from_it(tmp_path: Path) -> None:
    arguments = [*SMALL, "recipe.epochs=8", "run.wait=120", f"run.root={tmp_path / 'runs'}"]
    both = [
        subprocess.Popen(command(arguments), env=environment(), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=120)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert ["is finished" in text for text in said].count(True) == 1, said
    assert result(only_run(tmp_path / "runs"))["status"] == "finished"


def merge_some(path: Path, first: int) -> None:
    for number in range(first, first + 10):
        record.merge_records(path, [made_up_record(number)])


def made_up_record(number: int) -> record.Record:
    cell = type("Cell", (), {"run": f"run-{number:03}", "seed": 0})
    return made_up.record(cell, float(number))


def test_eight_processes_merge_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=merge_some, args=(path, 10 * i)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found = record.read_records(path)
    assert found == {f"run-{n:03}": made_up_record(n) for n in range(80)}

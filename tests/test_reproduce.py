"""The driver, with real processes that train nothing: skipping, failing, stopping, going on."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normrepro import papers
from normrepro.launch import bars, driver, processes
from normrepro.record import read_records
from normrepro.training import lock

pytestmark = pytest.mark.dist
ROOT = Path(__file__).resolve().parents[1]
# Stands for train.py: tells its progress, then leaves a record, fails, or waits for ever.
CHILD = """
import contextlib, json, os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from normrepro import config, record
from normrepro.training import lock
cfg = config.compose(sys.argv[1:])
folder = config.run_dir(cfg)
held = contextlib.ExitStack()
try:
    held.enter_context(lock.hold(folder))
except lock.HeldError:
    sys.exit(lock.HELD)
if (folder / "result.json").exists():
    sys.exit()
with open(folder / "started", "a") as file:
    print(os.getpid(), file=file)
pipe = int(os.environ["NORMREPRO_PROGRESS_FD"])
for step in (1, 2):
    line = dict(step=step, steps=2, epoch=1, images_per_second=100.0)
    os.write(pipe, (json.dumps(line) + chr(10)).encode())
mode = Path({mode!r}).read_text()
if mode == "wait":
    time.sleep(600)
if mode == "slow":
    time.sleep(0.7)
if mode == cfg.norm.name:
    sys.exit("this norm is broken today")
record.write_json(folder / "result.json", dict(
    run=config.run_name(cfg), status="finished", scale="proxy", config=dict(seed=cfg.seed),
    metrics=dict(error=float(cfg.batch.norm)), history=[], data=dict(classes=10, train=1, val=1),
    environment=dict(), seconds=1.0, notes=[]))
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts the driver; its children do what the file `mode` says."""
    child = tmp_path / "child.py"
    child.write_text(CHILD.format(root=str(ROOT), mode=str(tmp_path / "mode")))

    def run(mode: str, where: str = ".", table: str | None = "table1") -> subprocess.Popen[str]:
        (tmp_path / "mode").write_text(mode)
        root = tmp_path / where
        return subprocess.Popen(
            [
                *[sys.executable, str(ROOT / "scripts" / "reproduce.py"), "mabn"],
                *([table] if table else []),
                *["--seeds", "1", "--jobs", "2", "--train", str(child), "--no-index"],
                *["--runs", str(root / "runs"), "--results", str(root / "results")],
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A job in a shell's background inherits a SIGINT that is ignored; a person's does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return run


def written(folder: Path) -> dict[str, bytes]:
    """All that a driver leaves for people, but for the lock of the records."""
    found = (path for path in (folder / "results").rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.suffix != ".lock"}


def starts(tmp_path: Path) -> dict[str, list[int]]:
    """The processes that each run had."""
    files = (tmp_path / "runs").glob("*/started")
    return {file.parent.name: list(map(int, file.read_text().split())) for file in files}


def test_a_table_is_made_and_made_again_without_training(start, tmp_path):
    out, err = start("train").communicate(timeout=120)
    assert "| BN (Regular) | 32.00 (n = 1) |" in out, err
    assert "[4/4]" in err
    written = {
        path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()
    }
    process = start("train")
    again, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert again == out
    assert all(len(pids) == 1 for pids in starts(tmp_path).values())
    assert all(path.read_bytes() == before for path, before in written.items())


def test_a_failed_run_stops_no_other_and_is_shown(start, tmp_path):
    process = start("brn")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "3 of 4 cells" in out
    assert "this norm is broken today" in err
    assert len(read_records(tmp_path / "results" / "records.jsonl")) == 3
    process = start("train")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "4 of 4 cells" in out
    assert sorted(len(pids) for pids in starts(tmp_path).values()) == [1, 1, 1, 2]


def test_a_stopped_driver_leaves_no_process(start, tmp_path):
    process = start("wait")
    deadline = time.monotonic() + 60
    while len(starts(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on where this one ended" in err
    pids = [pid for pids in starts(tmp_path).values() for pid in pids]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_run_that_another_process_holds_is_left_to_it(start, tmp_path):
    held = papers.load_table("mabn", "table1").cells("proxy", 1)[0].run
    with lock.hold(tmp_path / "runs" / held):
        process = start("train")
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("runs/*/result.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"{held} is being trained by process {os.getpid()}" in err
    assert "left to it" in err
    assert "4 of 4 cells" in out


@pytest.mark.slow
def test_eight_drivers_at_once_train_each_run_once(start, tmp_path):
    drivers = [start("slow") for _ in range(8)]
    said = [process.communicate(timeout=600) for process in drivers]
    assert [process.returncode for process in drivers] == [0] * 8, said
    assert len({out for out, _ in said}) == 1
    assert "4 of 4 cells" in said[0][0]
    assert [len(pids) for pids in starts(tmp_path).values()] == [1] * 4
    assert len(read_records(tmp_path / "results" / "records.jsonl")) == 4


@pytest.mark.slow
def test_killed_drivers_leave_the_bytes_of_an_undisturbed_one(start, tmp_path):
    begun = time.monotonic()
    start("slow", "whole").communicate(timeout=300)
    whole = time.monotonic() - begun
    kills = [whole * (i + random.random()) / 8 for i in range(8)]  # starts, trains, merges, renders
    for moment in kills:
        process = start("slow", "killed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moment)
        process.kill()
        process.communicate()
    process = start("slow", "killed")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert written(tmp_path / "killed") == written(tmp_path / "whole"), kills


@pytest.mark.slow
def test_a_whole_paper_is_made_a_broken_run_stops_no_table(start, tmp_path):
    process = start("brn", table=None)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 1
    lines = {line.partition(": ")[0]: line.partition(": ")[2] for line in out.splitlines()}
    assert lines["MABN Table 1"] == "3 of 4 runs, 1 failed"
    assert lines["MABN Table 3"] == "not runnable yet: needs the detection task"
    assert "this norm is broken today" in err
    assert (tmp_path / "results" / "mabn_table4.proxy.md").exists()
    assert max(len(pids) for pids in starts(tmp_path).values()) == 1  # shared runs too


def test_progress_in_pieces_is_put_together():
    ours, theirs = os.pipe()
    job = driver.Job(None, 0, None, ours)
    text = json.dumps({"step": 3, "steps": 4}).encode() + b"\n"
    os.write(theirs, b"not json\n" + text[:9])
    driver.listen([job])
    assert job.told == {}
    os.write(theirs, text[9:])
    driver.listen([job])
    assert job.told == {"step": 3, "steps": 4}
    os.close(theirs)
    driver.listen([job])
    assert not job.open
    os.close(ours)


def test_the_time_left_counts_parts_of_runs_and_not_what_was_there_before(monkeypatch):
    clock = iter([100.0, 160.0, 160.0])
    monkeypatch.setattr(bars.time, "monotonic", lambda: next(clock))
    shown = bars.Bars("a table", total=6, done=2, jobs=2)
    assert shown.eta() == "?"
    shown.show(0, "a", {"step": 50, "steps": 100})  # resumed half way
    assert shown.eta() == "?"
    shown.show(0, "a", {"step": 75, "steps": 100})
    assert shown.eta() == "13:00"  # a quarter of a run took 60 s; 3.25 runs are left
    shown.end(0, counted=True)
    assert shown.eta() == "06:00"  # half a run in 60 s; 3 are left
    shown.close()


def test_slots_share_the_gpus_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    found = [processes.environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert found == ["4,5", "6,7", "4,5"]
    assert processes.environment(1, 4)["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"

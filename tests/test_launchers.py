"""Launchers: forks with the bits of fresh processes, joblib, and Slurm through a local stand-in."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from normrepro import config
from normrepro.checks import ConfigError
from normrepro.launch import bars, driver, forks, launchers, slurm
from normrepro.launch.processes import Task, last_lines
from normrepro.training import lock
from normrepro.training.interrupt import RESUME
from tests.conftest import SMALL, result, same_bits, weights

pytestmark = pytest.mark.dist
ROOT = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(not forks.safe(1), reason="forks need Linux without a GPU")
# Stands for train.py: leaves a record, waits, fails, or is interrupted once.
CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from normrepro import record
mode, folder = sys.argv[1], Path(sys.argv[2])
with open(folder / "started", "a") as file:
    print(os.getpid(), os.environ.get("WORLD_SIZE"), file=file)
if mode == "wait":
    time.sleep(600)
if mode == "fail":
    sys.exit("not today")
if mode == "interrupted" and len((folder / "started").read_text().split()) < 4:
    sys.exit(75)
if mode == "die" and not Path(sys.argv[3]).exists():
    Path(sys.argv[3]).touch()
    os.kill(os.getpid(), 9)
record.write_json(folder / "result.json", dict(run=folder.name, status="finished", metrics=dict()))
"""


@pytest.fixture
def child(tmp_path: Path) -> Path:
    path = tmp_path / "child.py"
    path.write_text(CHILD.format(root=str(ROOT)))
    return path


def task(tmp_path: Path, child: Path, name: str, mode: str) -> Task:
    folder = tmp_path / "runs" / name
    command = [sys.executable, str(child), mode, str(folder), str(tmp_path / "died")]
    return Task(name, folder, command)


def run(name: str, tasks: list[Task], child: Path, options: str = "") -> dict[str, driver.Outcome]:
    shown = bars.Bars("a table", len(tasks), 0, 2)
    with launchers.launch(name, 2, options, child, tasks, shown) as launcher:
        return {outcome.task.run: outcome for outcome in launcher.outcomes()}


def starts(tasks: list[Task]) -> list[int]:
    return [len((task.folder / "started").read_text().splitlines()) for task in tasks]


@pytest.mark.parametrize("name", ["local", "joblib"])
def test_outcomes_of_runs_that_end_fail_and_are_interrupted(
    tmp_path: Path, child: Path, name: str
) -> None:
    modes = ["train", "fail", "interrupted", "train"]
    tasks = [task(tmp_path, child, f"run{i}", mode) for i, mode in enumerate(modes)]
    found = run(name, tasks, child)
    assert [found[t.run].record is not None for t in tasks] == [True, False, True, True]
    assert found["run1"].code == 1
    assert "not today" in last_lines(tasks[1])
    assert starts(tasks) == [1, 1, 2, 1]


def test_a_worker_of_joblib_that_dies_costs_no_run(tmp_path: Path, child: Path) -> None:
    tasks = [task(tmp_path, child, f"run{i}", "die" if i == 1 else "train") for i in range(4)]
    found = run("joblib", tasks, child)
    assert all(outcome.record for outcome in found.values())
    assert len(found) == 4


@linux
def test_a_zygote_that_dies_costs_no_run(tmp_path: Path, child: Path) -> None:
    tasks = [task(tmp_path, child, f"run{i}", "wait") for i in range(3)]
    with forks.Zygote(child) as zygote:
        pool = driver.Pool(tasks, 2, bars.Bars("a table", 3, 0, 2), zygote.start)
        next_of(pool)
        children = [job.process for job in pool.jobs]
        assert all(isinstance(process, forks.Forked) for process in children)
        zygote.process.kill()
        assert wait_for(lambda: [process.poll() for process in children] == [RESUME, RESUME])
        assert wait_for(lambda: all(gone(process.pid) for process in children))
        other = task(tmp_path, child, "run3", "train")
        other.folder.mkdir()
        fresh = zygote.start(other, 0, 1)
        assert isinstance(fresh, subprocess.Popen)
        assert fresh.wait() == 0


def next_of(pool: driver.Pool) -> None:
    """Let a pool start what it can."""
    list(pool.fill())


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def gone(pid: int) -> bool:
    """Whether a process has ended, its parent's duty to ask for the code aside."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_run_that_another_process_has_is_waited_for(tmp_path: Path, child: Path) -> None:
    tasks = [task(tmp_path, child, "run0", "train")]
    with lock.hold(tasks[0].folder):
        pool = driver.Pool(tasks, 1, bars.Bars("a table", 1, 0, 1))
        next_of(pool)
        assert pool.waiting == tasks
        assert "is being trained by process" in pool.elsewhere["run0"]
    (outcome,) = pool.outcomes()
    assert outcome.record
    assert starts(tasks) == [1]


def test_slurm_options_and_a_machine_without_slurm(tmp_path: Path) -> None:
    assert slurm.parse("partition=gpu timeout_min=60 exclusive=true") == {
        "partition": "gpu",
        "timeout_min": 60,
        "exclusive": True,
    }
    with pytest.raises(ConfigError, match="'gpu' is not of the form"):
        slurm.parse("gpu")
    if shutil.which("srun") is None:
        with pytest.raises(ConfigError, match="LAUNCHER=local"):
            slurm.executor(tmp_path, None, 1, {})


@pytest.mark.slow
@linux
def test_slurm_jobs_are_followed_and_one_is_resumed(tmp_path: Path, child: Path) -> None:
    tasks = [task(tmp_path, child, f"run{i}", m) for i, m in enumerate(["train", "interrupted"])]
    found = run("slurm", tasks, child, "cluster=local gpus_per_node=0 timeout_min=2")
    assert all(outcome.record for outcome in found.values())
    assert starts(tasks) == [1, 2]
    assert (tasks[0].folder / "started").read_text().split()[1] == "1"  # torch's environment
    assert not list(tmp_path.glob("runs/*/.job.json"))


@pytest.mark.slow
@linux
def test_a_job_at_its_time_limit_saves_and_is_requeued(tmp_path: Path) -> None:
    """The real train.py under submitit's own controller; the signal is the one of Slurm."""
    arguments = [*SMALL, "recipe.epochs=60", "run.save_every=0", f"run.root={tmp_path / 'runs'}"]
    name = config.run_name(config.compose(arguments))
    one = Task(name, tmp_path / "runs" / name, [sys.executable, str(ROOT / "train.py"), *arguments])
    options = {"cluster": "local", "gpus_per_node": 0, "timeout_min": 5}
    launcher = slurm.Slurm(
        [one], bars.Bars("a", 1, 0, 0), slurm.executor(tmp_path / "jobs", 1, 1, options)
    )
    launcher.start([one])
    assert wait_for((one.folder / "last.pt").exists, 120)
    controller = launcher.jobs[name]._process.pid
    (job,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(job), signal.SIGUSR2)
    assert wait_for(lambda: "goes on at step" in last_lines(one, 1000), 120), last_lines(one)
    (outcome,) = launcher.outcomes()
    launcher.jobs[name]._process.wait()
    assert outcome.record["status"] == "finished"
    assert "SIGTERM" in last_lines(one, 1000)


@pytest.mark.slow
@linux
def test_forked_runs_and_those_of_joblib_have_the_bits_of_fresh_ones(tmp_path: Path) -> None:
    settings = [["norm=mabn"], ["norm=cbn", "seed=3"], ["norm=evalnorm", "batch.norm=4"]]
    script = ROOT / "train.py"
    for way in ("fresh", "local", "joblib"):
        tasks = []
        for more in settings:
            overrides = [*SMALL, "recipe.epochs=2", *more, f"run.root={tmp_path / way}"]
            name = config.run_name(config.compose(overrides))
            command = [sys.executable, str(script), *overrides]
            tasks.append(Task(name, tmp_path / way / name, command))
        if way == "fresh":
            for one in tasks:
                done = subprocess.run(one.command, capture_output=True, text=True, cwd=ROOT)
                assert done.returncode == 0, done.stderr
        else:
            found = run(way, tasks, script)
            assert all(o.record for o in found.values()), [last_lines(t) for t in tasks]
    for folder in (tmp_path / "fresh").iterdir():
        for way in ("local", "joblib"):
            other = tmp_path / way / folder.name
            assert same_bits(weights(folder), weights(other)), f"{way}: {folder.name}"
            assert result(folder) == result(other)


@linux
def test_children_end_when_the_driver_is_killed(tmp_path: Path, child: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.test_launchers import *\n"
        "base, child = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "run('local', [task(base, child, f'run{i}', 'wait') for i in range(3)], child)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path), str(child)])
    files = [tmp_path / "runs" / f"run{i}" / "started" for i in range(2)]
    assert wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    process.send_signal(signal.SIGKILL)
    process.wait()
    pids = [int(file.read_text().split()[0]) for file in files]
    assert wait_for(lambda: all(map(gone, pids)), 20)


def test_a_forked_run_has_the_environment_and_the_session_of_a_fresh_one(tmp_path: Path) -> None:
    if not forks.safe(1):
        pytest.skip("forks need Linux without a GPU")
    script = tmp_path / "says.py"
    script.write_text(
        "import os, sys, threading\n"
        "print(sys.argv, __name__, sys.path[0], os.getsid(0) == os.getpid(), os.getcwd())\n"
        "print(sorted(k for k in os.environ if k != 'NORMREPRO_PROGRESS_FD'))\n"
        "print(len(os.listdir('/proc/self/fd')), threading.active_count(), sys.stdin.read())\n"
    )
    said = []
    for name in ("fresh", "forked"):
        one = Task(name, tmp_path / name, [sys.executable, str(script), "a", "b c"])
        one.folder.mkdir()
        with forks.Zygote(script) as zygote:
            ours, theirs = os.pipe()
            start = zygote.start if name == "forked" else driver.spawn
            process = start(one, 0, theirs)
            assert process.wait() == 0, last_lines(one)
            os.close(ours)
            os.close(theirs)
        said.append(last_lines(one))
    assert said[0] == said[1]


@pytest.mark.slow
@linux
def test_many_runs_cost_one_start_up_and_no_memory(
    tmp_path: Path, child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task(tmp_path, child, f"run{i}", "train") for i in range(80)]
    monkeypatch.setattr(forks, "spawn", lambda *_: pytest.fail("a fresh process was started"))
    shown, sizes = bars.Bars("a table", len(tasks), 0, 2), []
    with launchers.launch("local", 2, "", child, tasks, shown) as launcher:
        for outcome in launcher.outcomes():
            assert outcome.record
            sizes.append(resident())
    assert len(sizes) == 80
    assert sizes[-1] - sizes[9] < 4


def resident() -> float:
    """MB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20

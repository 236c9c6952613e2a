"""Runs as one array job of Slurm, through submitit.

Each cell is a job of as many tasks as it has GPUs. Slurm's signal before the time limit, or before
it takes the node away, makes the run save and the job requeue. The driver may end meanwhile: the
jobs go on, each noted in its run's directory, and the same command finds them again.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
import yaml

from normrepro.checks import ConfigError
from normrepro.launch.bars import Bars
from normrepro.launch.driver import RESUMES, Outcome
from normrepro.launch.processes import Task, console
from normrepro.record import ROOT, read_result, write_json
from normrepro.training import lock
from normrepro.training.interrupt import RESUME

NOTE = ".job.json"  # in a run's directory: the job that has it
SHARED = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
GRACE = 60  # seconds that a run has to save; Slurm's signal comes 90 seconds before the end
POLL = 5.0  # seconds between two looks; Slurm itself is asked once a minute


class Train:
    """What a job does: one rank of a run, in a process that can be asked to save and end."""

    def __call__(self, command: Sequence[str], log: str) -> int:
        """Train to the end; return the exit code."""
        here = submitit.helpers.TorchDistributedEnvironment()
        here.export(set_cuda_visible_devices=False, overwrite=True)
        path = Path(log) if here.rank == 0 else Path(os.devnull)
        with open(path, "ab") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_ignore,
            )
        self.end = os.pidfd_open(self.process.pid)
        select.select([self.end], [], [])
        return self.process.wait()

    def checkpoint(self, command: Sequence[str], log: str) -> submitit.helpers.DelayedSubmission:
        """Let the run save, and say what is to be started in its place."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        select.select([self.end], [], [], GRACE)
        return submitit.helpers.DelayedSubmission(Train(), command, log)


def _ignore() -> None:
    """Leave Slurm's signal, which reaches every process of a job, to the one that handles it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def parse(options: str) -> dict[str, Any]:
    """Read options such as "partition=gpu timeout_min=1440 cpus_per_task=12".

    Raises:
        ConfigError: One of them is not of the form key=value.
    """
    pairs = [option.partition("=") for option in options.split()]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise ConfigError(f"SLURM option {wrong[0]!r} is not of the form key=value")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def executor(
    folder: Path, jobs: int | None, gpus: int, options: Mapping[str, Any]
) -> submitit.AutoExecutor:
    """Return what submits jobs.

    Args:
        folder: For submitit's own files.
        jobs: How many may run at a time.
        gpus: GPUs of a run, with a task for each.
        options: Over the defaults; those that are not submitit's own are sbatch's, "slurm_" left
            out. `cluster=local` starts the jobs on this machine.

    Raises:
        ConfigError: There is no Slurm here, or it has no such option.
    """
    options = dict(options)
    cluster = options.pop("cluster", "slurm")
    given = {"timeout_min": 1440, "gpus_per_node": gpus, "tasks_per_node": gpus, "nodes": 1}
    given |= {"name": "normrepro", "slurm_array_parallelism": jobs or 256}
    given |= {key if key in SHARED else f"slurm_{key}": value for key, value in options.items()}
    # A run may need many time limits; each job counts how many it has had.
    often = {f"{cluster}_max_num_timeout": 10_000}
    try:
        result = submitit.AutoExecutor(folder=folder, cluster=cluster, **often)
        result.update_parameters(**given)
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise ConfigError(f"SLURM: {error}; LAUNCHER=local trains on this machine") from error
    return result


class Slurm:
    """Submits tasks as one array job and follows the jobs."""

    def __init__(self, tasks: Sequence[Task], bars: Bars, submit: submitit.AutoExecutor) -> None:
        self.tasks, self.bars, self.submit = tasks, bars, submit
        self.jobs: dict[str, submitit.Job[int]] = {}
        self.again: dict[str, int] = {}

    def outcomes(self) -> Iterator[Outcome]:
        """Yield each task's outcome once its job has ended."""
        left = {task.run: task for task in self.tasks}
        found = {task.run: job for task in self.tasks if (job := self.noted(task))}
        if found:
            self.bars.say(f"{len(found)} runs have jobs already")
        self.jobs |= found
        while left:
            self.start([task for run, task in left.items() if run not in self.jobs])
            for run, task in list(left.items()):
                record, code = read_result(task.folder / "result.json"), self.code(task)
                if record is None and code is None:
                    continue
                if record is None and code in (RESUME, lock.HELD) and self.may(run):
                    del self.jobs[run]
                    continue
                del left[run]
                (task.folder / NOTE).unlink(missing_ok=True)
                self.bars.skip()
                yield Outcome(task, record, code or 0)
            self.bars.refresh()
            time.sleep(POLL if left else 0)

    def may(self, run: str) -> bool:
        """Count how often a run is submitted again; tell whether it may be."""
        self.again[run] = self.again.get(run, 0) + 1
        return self.again[run] <= RESUMES

    def start(self, tasks: Sequence[Task]) -> None:
        """Submit tasks as one array, but for those that somebody trains."""
        free = [task for task in tasks if not lock.holder(task.folder)]
        if not free:
            return
        for task in free:
            task.folder.mkdir(parents=True, exist_ok=True)
        commands, logs = [list(t.command) for t in free], [str(console(t)) for t in free]
        with _importable():
            jobs = self.submit.map_array(Train(), commands, logs)
        for task, job in zip(free, jobs, strict=True):
            self.jobs[task.run] = job
            write_json(task.folder / NOTE, {"job": job.job_id, "folder": str(job.paths.folder)})
        self.bars.say(f"submitted {len(jobs)} jobs: {jobs[0].job_id} to {jobs[-1].job_id}")

    def noted(self, task: Task) -> submitit.Job[int] | None:
        """Return the job that an earlier driver submitted for a task, where it still has it."""
        try:
            note = json.loads((task.folder / NOTE).read_text(encoding="utf-8"))
            job = self.submit._executor.job_class(note["folder"], note["job"])
        except (OSError, ValueError, KeyError):
            return None
        return None if job.done(force_check=True) else job

    def code(self, task: Task) -> int | None:
        """Return the exit code of a task's job, None while it waits or runs."""
        job = self.jobs.get(task.run)
        if job is None or not job.done() or lock.holder(task.folder):
            return None
        try:
            return int(job.result())
        except Exception as error:  # submitit passes on whatever ended the job
            self.bars.say(f"{task.run}: job {job.job_id}: {error}")
            return 1


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Let the jobs, which inherit the environment, import this package from a checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before

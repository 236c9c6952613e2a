"""Runs many training processes side by side and shows how far they are.

Each child tells its progress in JSON lines over a pipe (the file descriptor is named in
NORMREPRO_PROGRESS_FD), and writes whatever it prints to ``console.log`` in its run's directory. A
child that fails stops no other; leaving the pool, also by Ctrl-C, ends the children.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from normrepro.bars import Bars
from normrepro.record import ROOT, Record, read_result

PIPE = "NORMREPRO_PROGRESS_FD"
VISIBLE = "CUDA_VISIBLE_DEVICES"
PATIENCE = 10.0  # seconds that a child has to end after it was asked to


@dataclass(frozen=True)
class Task:
    """One run to make: its name, its directory, the command, and whether torchrun starts it."""

    run: str
    folder: Path
    command: Sequence[str]
    gpus: int = 1


@dataclass
class Job:
    """A task under way: process, slot, the reading end of its pipe and what it told last."""

    task: Task
    slot: int
    process: subprocess.Popen[bytes]
    pipe: int
    open: bool = True
    buffer: bytes = b""
    told: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A task that ended: its record, or None where the process failed, and its exit code."""

    task: Task
    record: Record | None
    code: int


class Pool:
    """Runs tasks, so many at a time; a context, at whose end no child is left."""

    def __init__(self, tasks: Sequence[Task], jobs: int, bars: Bars) -> None:
        self.waiting, self.slots, self.bars = list(tasks), list(range(jobs)), bars
        self.jobs: list[Job] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stop([job.process for job in self.jobs])

    def outcomes(self) -> Iterator[Outcome]:
        """Yield each task's outcome as soon as its process has ended."""
        while self.waiting or self.jobs:
            while self.waiting and self.slots:
                self.jobs.append(start(self.waiting.pop(0), self.slots.pop(0)))
            listen(self.jobs)
            for job in [job for job in self.jobs if job.process.poll() is not None]:
                self.jobs.remove(job)
                self.slots.append(job.slot)
                os.close(job.pipe)
                record = read_result(job.task.folder / "result.json")
                self.bars.end(job.slot, counted=record is not None)
                yield Outcome(job.task, record, job.process.returncode)
            for job in self.jobs:
                self.bars.show(job.slot, job.task.run, job.told)
            self.bars.refresh()


def start(task: Task, slot: int) -> Job:
    """Start a task's process, in a session of its own so that Ctrl-C reaches only the driver."""
    task.folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    # torchrun hands nothing but the standard descriptors on to the processes that it starts.
    number = 0 if task.gpus > 1 else theirs
    try:
        with open(task.folder / "console.log", "ab") as log:
            process = subprocess.Popen(
                task.command,
                cwd=ROOT,
                env=environment(slot, task.gpus) | {PIPE: str(number)},
                stdin=theirs if task.gpus > 1 else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,
            )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Job(task, slot, process, ours)


def environment(slot: int, gpus: int) -> dict[str, str]:
    """Return a child's environment: one thread per library, and the GPUs of its slot."""
    result = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}
    there = [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    visible = result[VISIBLE].split(",") if VISIBLE in result else there
    if len(visible) > gpus:  # more slots than GPUs share them in turn
        mine = [visible[(slot * gpus + i) % len(visible)] for i in range(gpus)]
        result[VISIBLE] = ",".join(mine)
    return result


def listen(jobs: Sequence[Job], seconds: float = 0.2) -> None:
    """Wait a little for the children, and keep the last line that each has told."""
    pipes = {job.pipe: job for job in jobs if job.open}
    if not pipes:
        time.sleep(seconds)
    for pipe in select.select(list(pipes), [], [], seconds)[0] if pipes else []:
        job, text = pipes[pipe], os.read(pipe, 65536)
        job.open = bool(text)
        *lines, job.buffer = (job.buffer + text).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                job.told = json.loads(line)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and all that they started: ask first, then insist."""
    alive = [process for process in processes if process.poll() is None]
    for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + (patience or 0)
        while patience and any(p.poll() is None for p in alive) and time.monotonic() < deadline:
            time.sleep(0.05)
    for process in alive:
        process.wait()


def last_lines(task: Task, count: int = 15) -> str:
    """Return the end of what a task's process printed."""
    path = task.folder / "console.log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-count:])

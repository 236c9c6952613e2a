"""Runs many training processes side by side and shows how far they are.

Each child tells its progress in JSON lines over a pipe (the file descriptor is named in
NORMREPRO_PROGRESS_FD), and writes whatever it prints to ``console.log`` in its run's directory. A
child that fails stops no other; leaving the pool, also by Ctrl-C, ends the children, and a child
whose pipe breaks because the driver was killed ends too. A run that another driver's process works
on is left to it: this one waits for its record, or goes on with the run where that process ends
without one.
"""

import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from normrepro.launch.bars import Bars
from normrepro.launch.processes import Process, Task, spawn, stop
from normrepro.record import Record, read_result
from normrepro.training import lock
from normrepro.training.interrupt import RESUME

RESUMES = 10  # how often a run that was interrupted is started again
GLANCE = 1.0  # seconds between two looks at a run that another process has
Start = Callable[[Task, int, int], Process]


@dataclass
class Job:
    """A task under way: process, slot, the reading end of its pipe and what it told last."""

    task: Task
    slot: int
    process: Process
    pipe: int
    open: bool = True
    buffer: bytes = b""
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A task that ended: its record, or None where the process failed, and its exit code."""

    task: Task
    record: Record | None
    code: int = 0


class Pool:
    """Runs tasks, so many at a time; a context, at whose end no child is left."""

    def __init__(self, tasks: Sequence[Task], jobs: int, bars: Bars, start: Start = spawn) -> None:
        self.waiting, self.slots, self.bars = list(tasks), list(range(jobs)), bars
        self.start, self.jobs = start, list[Job]()
        self.resumes: dict[str, int] = {}
        self.elsewhere: dict[str, str] = {}  # runs that other processes have, and who they are
        self.looked = 0.0

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
        """Yield each task's outcome as soon as its process, here or elsewhere, has ended."""
        while self.waiting or self.jobs:
            yield from self.fill()
            listen(self.jobs)
            for job in [job for job in self.jobs if job.process.poll() is not None]:
                yield from self.end(job)
            for job in self.jobs:
                self.bars.show(job.slot, job.task.run, job.told)
            self.bars.refresh()

    def fill(self) -> Iterator[Outcome]:
        """Start what can be started; yield what others have finished meanwhile."""
        held = []
        look = self.look()
        while self.waiting and self.slots:
            task = self.waiting.pop(0)
            if task.run in self.elsewhere and not look:
                held.append(task)
            elif record := read_result(task.folder / "result.json"):
                self.bars.skip()
                yield Outcome(task, record)
            elif found := lock.holder(task.folder):
                self.leave(task, lock.describe(task.folder, found))
                held.append(task)
            else:
                self.elsewhere.pop(task.run, None)
                self.jobs.append(begin(task, self.slots.pop(0), self.start))
        self.waiting += held

    def look(self) -> bool:
        """Tell whether it is time to look again at the runs that others have."""
        due = time.monotonic() - self.looked > GLANCE
        self.looked = time.monotonic() if due else self.looked
        return due

    def leave(self, task: Task, who: str) -> None:
        """Note that another process has a run, and say so once."""
        if self.elsewhere.get(task.run) != who:
            self.bars.say(f"{who}: left to it")
        self.elsewhere[task.run] = who

    def end(self, job: Job) -> Iterator[Outcome]:
        """Take a job whose process has ended out; yield its outcome, or queue its task again."""
        listen([job], 0)
        self.jobs.remove(job)
        self.slots.append(job.slot)
        os.close(job.pipe)
        record = read_result(job.task.folder / "result.json")
        again = record is None and self.again(job)
        self.bars.end(job.slot, counted=record is not None, over=not again)
        if again:
            self.waiting.append(job.task)
        else:
            yield Outcome(job.task, record, job.process.returncode)

    def again(self, job: Job) -> bool:
        """Tell whether a run without a record is no failure: held elsewhere, or interrupted."""
        run, code = job.task.run, job.process.returncode
        if code == lock.HELD or "held" in job.told:
            self.leave(job.task, job.told.get("held", f"{run} is being trained elsewhere"))
            return True
        self.resumes[run] = self.resumes.get(run, 0) + 1
        return code == RESUME and self.resumes[run] <= RESUMES


def begin(task: Task, slot: int, start: Start) -> Job:
    """Start a task's process with a pipe to hear from it."""
    task.folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = os.pipe()
    try:
        process = start(task, slot, theirs)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Job(task, slot, process, ours)


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

"""The processes that train: what starts them, what they see, and how they are ended."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from normrepro.record import ROOT

PIPE = "NORMREPRO_PROGRESS_FD"
VISIBLE = "CUDA_VISIBLE_DEVICES"

PATIENCE = 10.0  # seconds that a child has to end after it was asked to


@dataclass(frozen=True)
class Task:
    """One run to make: its name, its directory, the command, and its GPUs (torchrun from 2 on)."""

    run: str
    folder: Path
    command: Sequence[str]
    gpus: int = 1


class Process(Protocol):
    """What the driver asks of a process, however it was started; it leads a group of its own."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        ...

    def wait(self) -> int:
        """Wait for its end."""
        ...


def console(task: Task) -> Path:
    """Return the file that takes what a task's process prints."""
    return task.folder / "console.log"


def spawn(task: Task, slot: int, pipe: int) -> Process:
    """Start a fresh process, in a session of its own so that Ctrl-C reaches only the driver.

    Args:
        task: What it has to do.
        slot: Which of the driver's places it takes; chooses its GPUs.
        pipe: File descriptor on which it tells its progress.
    """
    # torchrun hands nothing but the standard descriptors on to the processes that it starts.
    number = 0 if task.gpus > 1 else pipe
    with open(console(task), "ab") as log:
        return subprocess.Popen(
            task.command,
            cwd=ROOT,
            env=environment(slot, task.gpus) | {PIPE: str(number)},
            stdin=pipe if task.gpus > 1 else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(pipe,),
            start_new_session=True,
        )


def environment(slot: int, gpus: int) -> dict[str, str]:
    """Return a child's environment: one thread per library, and the GPUs of its slot."""
    result = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **os.environ}
    visible = result[VISIBLE].split(",") if VISIBLE in result else gpu_numbers()
    if len(visible) > gpus:  # more slots than GPUs share them in turn
        mine = [visible[(slot * gpus + i) % len(visible)] for i in range(gpus)]
        result[VISIBLE] = ",".join(mine)
    return result


def gpu_numbers() -> list[str]:
    """Return the numbers of this machine's NVIDIA GPUs."""
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def stop(processes: Sequence[Process]) -> None:
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
    path = console(task)
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-count:])

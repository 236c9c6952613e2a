"""One process per run: a lock in the run's directory that ends with its holder.

``flock`` (the default) is the kernel's lock on ``<run>/.lock``: it dies with the process that holds
it, however that ends. Linux passes it on over NFS; for file systems that do not there is
``run.lock=lease`` (lease.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from normrepro.checks import ConfigError
from normrepro.training import lease
from normrepro.training.lease import read

HELD = 73  # the exit code of a process that finds another at work on its run
PIPE = "NORMREPRO_PROGRESS_FD"  # as in progress.py, which imports torch
LOCK = ".lock"
GLANCE = 1.0  # seconds: a look at the lock (`holder`) takes it for a moment


class HeldError(RuntimeError):
    """Another process works on the run; the message says which."""


@contextlib.contextmanager
def hold(folder: Path, kind: str = "flock", wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a run's directory.

    Args:
        folder: The run's directory; made where it is missing.
        kind: "flock" or "lease".
        wait: Seconds to wait for another holder's end.

    Raises:
        HeldError: Another process holds it and went on holding it.
        ConfigError: The directory cannot be written to.
    """
    take = {"flock": _flock, "lease": _lease}[kind]
    with contextlib.ExitStack() as stack:
        deadline = time.monotonic() + max(wait, GLANCE)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while not take(folder, stack):
                if time.monotonic() >= deadline:
                    raise HeldError(describe(folder, holder(folder) or {}))
                time.sleep(0.05)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written to ({error.strerror}): set another run.root"
            ) from error
        yield


def holder(folder: Path) -> dict[str, Any] | None:
    """Return who works on a run (host, pid, since, as far as known), None where nobody does."""
    if lease.holds(folder):
        return read(folder / lease.NAME)
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return read(folder / LOCK)
    except OSError:
        pass
    return None


def describe(folder: Path, found: dict[str, Any]) -> str:
    """Say in a sentence who works on a run."""
    who = f"process {found.get('pid', '?')} on {found.get('host', 'another host')}"
    return f"{folder.name} is being trained by {who}, since {found.get('since', 'just now')}"


def tell_driver(message: str) -> None:
    """Tell a driver, where one listens, that the run is held: torchrun keeps exit codes back."""
    if os.environ.get(PIPE):
        with contextlib.suppress(OSError):
            os.write(int(os.environ[PIPE]), json.dumps({"held": message}).encode() + b"\n")


def _myself() -> str:
    """Return what a holder says of itself, as JSON."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})


_held: set[IO[str]] = set()


def _close_all() -> None:
    """Drop the locks in a forked child: else it would hold them when its parent is gone."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_all)


def _flock(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Take the kernel's lock, and write down who has it."""
    if lease.holds(folder):  # by a process that was told to use a lease
        return False
    file = open(folder / LOCK, "a", encoding="utf-8")  # noqa: SIM115 (it is kept open)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    file.truncate(0)
    file.write(_myself())
    file.flush()
    _held.add(file)
    stack.callback(_held.discard, file)
    stack.enter_context(file)
    return True


def _lease(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Take the kernel's lock as far as there is one, and the lease."""
    with contextlib.ExitStack() as own:
        with contextlib.suppress(OSError):  # those of a file system that knows no locks
            if not _flock(folder, own):
                return False
        if not lease.take(folder, _myself(), own):
            return False
        stack.push(own.pop_all())
    return True

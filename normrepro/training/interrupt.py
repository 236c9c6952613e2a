"""Ctrl-C and SIGTERM: end where it is safe, and say to whoever started the run to resume it.

The first signal asks: the loop saves at its next step and the process exits with RESUME. A second
Ctrl-C ends at once; files are replaced whole, so that it damages none.
"""

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("normrepro")
RESUME = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on where this one ended
AT_ONCE = 130  # as shells say of a process that Ctrl-C ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Two signals within this time are one wish: the terminal sends Ctrl-C to every process, and
# torchrun sends on to its processes what it gets itself.
ECHO = 1.0  # seconds


class Interrupted(Exception):
    """The run was asked to end, and has saved what it needs to go on."""


class Interrupts:
    """A context in which the first signal only sets `asked`."""

    def __init__(self) -> None:
        self.asked, self.when, self.process = False, 0.0, os.getpid()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self.before = {number: signal.signal(number, self.take) for number in SIGNALS}
        return self

    def take(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; end at once on a second Ctrl-C."""
        if os.getpid() != self.process:  # a loader's worker: it ends with the process it serves
            return
        if self.asked and number == signal.SIGINT and time.monotonic() - self.when > ECHO:
            os.write(2, b"ended at once; the same command goes on from the last checkpoint\n")
            os._exit(AT_ONCE)
        if not self.asked:
            self.asked, self.when = True, time.monotonic()
            name = signal.Signals(number).name
            os.write(2, f"{name}: saving at the next step; Ctrl-C again ends at once\n".encode())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def exit_before_training() -> None:
    """Let both signals end a process that has nothing to save yet with RESUME."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit(RESUME))

"""Death in the middle of a write: planted into a process that `forked.py` starts."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normrepro import papers
from normrepro.record import merge_records


def die_at(number: int, how: str, half: float = 0.5) -> None:
    """Kill this process at one of its calls of fsync and replace, which end all writes.

    Args:
        number: The call, counted from 1.
        how: "before", "after", or "half": before, with only a part of the file written.
        half: That part.
    """

    def act(count: int, what: Any, call: Callable[[], None]) -> None:
        if count != number:
            return call()
        name = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
        os.write(2, f"killed {how} writing {Path(name).name}\n".encode())
        if how == "half" and isinstance(what, int):
            os.ftruncate(what, int(half * os.fstat(what).st_size))
        if how == "after":
            call()
        os.kill(os.getpid(), signal.SIGKILL)

    _watch(act)


def count_writes(path: Path) -> None:
    """Keep in a file how many such calls this process has made."""

    def act(count: int, what: Any, call: Callable[[], None]) -> None:
        call()
        path.write_text(str(count))

    _watch(act)


def _watch(act: Callable[[int, Any, Callable[[], None]], None]) -> None:
    count = [0]

    def wrap(real: Callable[..., None]) -> Callable[..., None]:
        def call(what: Any, *rest: Any, **named: Any) -> None:
            count[0] += 1
            act(count[0], what, lambda: real(what, *rest, **named))

        return call

    os.fsync, os.replace = wrap(os.fsync), wrap(os.replace)


def other_papers(folder: Path) -> None:
    """Let the driver find its tables in another folder."""
    papers.FOLDER = folder


def merge_some() -> None:
    """Merge made-up records one by one: the script of the kind "merging records"."""
    for number in range(5):
        metrics = {"error": number / 7, "text": "x" * 500}
        record = {"run": f"run-{number}", "status": "finished", "metrics": metrics}
        merge_records(sys.argv[1], [record])


if __name__ == "__main__":
    merge_some()

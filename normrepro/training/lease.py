"""A lease on a run's directory, for network file systems that do not pass locks on.

A file that its holder touches every few seconds. It counts for nothing once it was not touched for
a minute, or where its holder is a dead process of this host. A holder that stood still for so long
that another process took over ends at its next touch: for some seconds both may write.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

NAME = ".lease"
BEAT, EXPIRY = 5.0, 60.0  # seconds between two touches, and until a lease has run out
LOST = 73  # the exit code of who lost it: as lock.HELD


def holds(folder: Path) -> bool:
    """Tell whether there is a lease: touched of late, and by no process known to be dead."""
    path = folder / NAME
    try:
        touched = path.stat().st_mtime
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{NAME}.now.") as now:
            age = os.stat(now.name).st_mtime - touched  # both by the file system's own clock
    except OSError:
        return path.exists()
    found = read(path)
    return age < EXPIRY and not (found.get("host") == socket.gethostname() and _dead(found))


def read(path: Path) -> dict[str, Any]:
    """Return what the holder of a lock says of itself; nothing while it is writing that."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _dead(found: dict[str, Any]) -> bool:
    """Tell whether a process of this host has ended."""
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def take(folder: Path, myself: str, stack: contextlib.ExitStack) -> bool:
    """Take the lease if it is free or has run out, and keep it alive from a thread.

    Args:
        folder: The run's directory.
        myself: What the file says of its holder.
        stack: Gives the lease back at its end.
    """
    path, mine = folder / NAME, _fresh(folder, myself)
    try:
        if path.exists() and not holds(folder):
            os.replace(path, mine.with_suffix(".old"))
            mine.with_suffix(".old").unlink()
        os.link(mine, path)  # fails where the file is there, on every file system
    except (FileExistsError, FileNotFoundError):
        return False
    finally:
        mine.unlink()
    ended, inode = threading.Event(), path.stat().st_ino
    beat = threading.Thread(target=_keep_alive, args=(path, inode, ended), daemon=True)
    beat.start()
    stack.callback(lambda: path.unlink() if _inode(path) == inode else None)
    stack.callback(beat.join)
    stack.callback(ended.set)
    return True


def _fresh(folder: Path, text: str) -> Path:
    """Write a text into a file of its own."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=f"{NAME}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _keep_alive(path: Path, inode: int, ended: threading.Event) -> None:
    """Touch the lease; once another process has taken it, end this one before it writes more."""
    while not ended.wait(BEAT):
        if _inode(path) != inode:
            os.write(2, f"{path.parent.name}: another process has taken over; ending\n".encode())
            os._exit(LOST)
        with contextlib.suppress(OSError):
            os.utime(path)

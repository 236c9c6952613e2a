"""The driver's end of the zygote: start runs by forking, where that is safe."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from normrepro.launch.processes import Process, Task, console, environment, gpu_numbers, spawn
from normrepro.launch.zygote import SIZE
from normrepro.record import ROOT
from normrepro.training.interrupt import RESUME

ZYGOTE = "normrepro.launch.zygote"


def safe(gpus: int) -> bool:
    """Tell whether runs may be forked: one process each, on Linux, on a machine without GPUs."""
    if gpus > 1 or not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
        return False
    return not gpu_numbers() and not Path("/dev/kfd").exists()


class Zygote:
    """Starts runs as forks of one process; a context, at whose end that process is gone.

    Where it cannot fork (its imports started a thread), or once it has died, fresh processes start.
    """

    def __init__(self, script: Path) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        preload = (
            "preload" if script == ROOT / "train.py" else "nothing"
        )  # tests have other scripts
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "normrepro.launch.zygote",
                    str(theirs.fileno()),
                    script,
                    preload,
                ],
                cwd=ROOT,
                env=environment(0, 1),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.alive: bool | None = None  # None until it has said
        self.codes: dict[int, int] = {}
        self.heard: deque[dict] = deque()

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        self.process.kill()
        self.process.wait()

    def start(self, task: Task, slot: int, pipe: int) -> Process:
        """Fork a process for a task, or start a fresh one."""
        if self.alive is None:
            self.alive = self.await_key("ready") is True
        pid = self.fork(task, slot, pipe) if self.alive else None
        return spawn(task, slot, pipe) if pid is None else Forked(self, pid)

    def fork(self, task: Task, slot: int, pipe: int) -> int | None:
        """Ask for a fork; None where the zygote is gone."""
        arguments = list(task.command[2:])  # without the interpreter and the script
        request = {"arguments": arguments, "env": environment(slot, task.gpus)}
        try:
            with open(console(task), "ab") as log:
                socket.send_fds(self.channel, [json.dumps(request).encode()], [log.fileno(), pipe])
        except OSError:
            self.alive = False
            return None
        return self.await_key("pid")

    def await_key(self, key: str) -> int | None:
        """Return what comes under a key, None when the zygote ends before it comes."""
        while self.hear(block=True):
            for message in list(self.heard):
                if key in message:
                    self.heard.remove(message)
                    return message[key]
        return None

    def hear(self, block: bool = False) -> bool:
        """Take one message in; False where there is none, or will be none."""
        try:
            text = self.channel.recv(SIZE, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            text = b""
        if not text:
            self.alive = False
            return False
        message = json.loads(text)
        if "ended" in message:
            self.codes[message["ended"]] = message["code"]
        else:
            self.heard.append(message)
        return True


class Forked:
    """A forked run, with the face of ``subprocess.Popen``."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.zygote, self.pid, self.returncode = zygote, pid, None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs; an orphan is ended and is to be resumed."""
        if self.returncode is None:
            while self.zygote.hear():
                pass
            self.returncode = self.zygote.codes.pop(self.pid, None)
            if self.returncode is None and self.zygote.alive is False:
                for kill in (os.killpg, os.kill):  # it may not lead its group yet
                    with contextlib.suppress(ProcessLookupError):
                        kill(self.pid, signal.SIGKILL)
                self.returncode = RESUME
        return self.returncode

    def wait(self) -> int:
        """Wait for its end."""
        while self.poll() is None:
            time.sleep(0.02)
        return self.returncode

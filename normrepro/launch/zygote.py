"""A process that has imported torch once and forks a child for every run.

Imports are most of a tiny run. This process imports what a run needs and then only waits: it starts
no thread, computes nothing and touches no GPU, so that a forked child has the state of a fresh
interpreter after its imports, and leaves the same bits. `Zygote` is the driver's end of it.

The two talk in JSON over a socket: `{"command", "env"}` with two file descriptors (log, pipe) one
way; `{"ready"}`, `{"pid"}` and `{"ended", "code"}` the other.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

PRELOAD = (
    *("torch", "torch._dynamo", "torchvision", "timm", "sklearn.datasets"),
    *("normrepro.engine", "normrepro.models", "normrepro.data.digits", "hydra.main"),
)
SIZE = 1 << 20  # bytes of a message


def main() -> None:
    """Import, then serve; in a child, run the script that the driver asked for."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    script = Path(sys.argv[2])
    if sys.argv[3] == "preload":
        preload()
    gc.collect()
    gc.freeze()  # collecting in a child would copy the pages of all that it shares
    _tell(channel, {"ready": fit_to_fork()})
    arguments = serve(channel)
    if arguments is not None:
        sys.argv = [str(script), *arguments]
        sys.path[0] = str(script.parent)
        runpy.run_path(str(script), run_name="__main__")


def preload() -> None:
    """Import what runs need, and compose a config once, which fills the parser's tables."""
    for name in PRELOAD:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    importlib.import_module("normrepro.config").compose(["norm=mabn", "batch.norm=2"])


def fit_to_fork() -> bool:
    """Tell whether this process has a single thread and no GPU in use."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_initialized()
    return len(os.listdir("/proc/self/task")) == 1 and not cuda


def serve(channel: socket.socket) -> list[str] | None:
    """Fork a child per request until the driver is gone; return only in a child, its arguments."""
    children: dict[int, int] = {}  # from a pidfd to its pid
    while True:
        for ready in select.select([channel, *children], [], [])[0]:
            if ready is channel:
                text, received, *_ = socket.recv_fds(channel, SIZE, 2)
                if not text:
                    _end(children.values())
                request = json.loads(text)
                pid = os.fork()
                if pid == 0:
                    _become(channel, request, received, list(children))
                    return request["arguments"]
                for number in received:
                    os.close(number)
                children[os.pidfd_open(pid)] = pid
                _tell(channel, {"pid": pid})
            else:
                _, status = os.waitpid(children.pop(ready), 0)
                os.close(ready)
                pid, code = _, os.waitstatus_to_exitcode(status)
                _tell(channel, {"ended": pid, "code": code})


def _tell(channel: socket.socket, message: dict) -> None:
    """Send a message; a driver that is gone shows in the next receipt."""
    with contextlib.suppress(OSError):
        channel.send(json.dumps(message).encode())


def _end(pids: object) -> None:
    """End with the children: the driver is gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
    os._exit(0)


def _become(channel: socket.socket, request: dict, received: list[int], others: list[int]) -> None:
    """Take the place of a fresh process: session, descriptors, environment."""
    channel.close()
    for number in others:
        os.close(number)
    os.setsid()
    log, pipe = received
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(empty)
    os.close(log)
    os.set_inheritable(pipe, False)
    os.environ.clear()
    os.environ.update(request["env"], NORMREPRO_PROGRESS_FD=str(pipe))
    gc.unfreeze()


if __name__ == "__main__":
    main()

"""Start `train.py` or a script many times, from a server process that has imported everything.

Importing torch takes seconds; a process forked from the server starts in milliseconds and is a
process like any other: with its own signals, files and end.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = [
    *("normrepro.engine", "normrepro.training.wandb_log", "normrepro.report", "scripts.forked"),
    *("hydra", "sklearn.datasets", "torch._dynamo", "torch.nn.parallel"),
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOADED)


def start(
    arguments: Sequence[str],
    log: Path,
    script: str = "train.py",
    prepare: Callable[[], None] | None = None,
    **env: str,
) -> BaseProcess:
    """Start a script of the repository.

    Args:
        arguments: Its command line.
        log: File to which what it prints is added.
        script: Its path from the repository's root.
        prepare: Called first; a function that can be pickled, such as one that plants a fault.
        env: Variables to set.
    """
    process = SERVER.Process(target=_run, args=(list(arguments), log, script, prepare, env))
    process.start()
    return process


def start_ranks(
    arguments: Sequence[str],
    log: Path,
    world: int = 2,
    prepare: Sequence[Callable[[], None] | None] = (),
    more: Sequence[Sequence[str]] = (),
    **env: str,
) -> list[BaseProcess]:
    """Start the processes of one run without torchrun, which would end the others with the first.

    Args:
        arguments: The command line of all of them.
        log: File to which what they print is added.
        world: How many.
        prepare: What each calls first.
        more: Arguments of each rank alone.
        env: Variables to set.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    return [
        start(
            [*arguments, *(more[rank] if more else ())],
            log,
            prepare=prepare[rank] if prepare else None,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), **place, **env},
        )
        for rank in range(world)
    ]


def free_port() -> int:
    """Return a port that nobody listened to a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(
    arguments: list[str],
    log: Path,
    script: str,
    prepare: Callable[[], None] | None,
    env: dict[str, str],
) -> None:
    os.setsid()  # a group of its own, as a shell gives to a job
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    if prepare is not None:
        prepare()
    sys.argv = [str(ROOT / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")

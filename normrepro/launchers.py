"""How missing runs are started: on this machine, through joblib, or through Slurm."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from normrepro import forks
from normrepro.bars import Bars
from normrepro.campaign import Launcher
from normrepro.driver import Pool
from normrepro.processes import Task, spawn

NAMES = ("local", "joblib", "slurm")


@contextmanager
def launch(
    name: str, jobs: int, options: str, script: Path, tasks: Sequence[Task], bars: Bars
) -> Iterator[Launcher]:
    """Open a launcher; at its end none of its processes is left, but for what Slurm has.

    Args:
        name: One of NAMES.
        jobs: Runs side by side.
        options: Slurm's, as "key=value key=value".
        script: train.py.
        tasks: The runs to make.
        bars: Where progress shows.
    """
    with ExitStack() as stack:
        start = spawn
        if len(tasks) > jobs and forks.safe(tasks[0].gpus):
            start = stack.enter_context(forks.Zygote(script)).start
        yield stack.enter_context(Pool(tasks, jobs, bars, start))

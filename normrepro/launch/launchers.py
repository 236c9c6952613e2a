"""How missing runs are started: on this machine, through joblib, or through Slurm."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from normrepro.checks import ConfigError
from normrepro.launch import forks
from normrepro.launch.bars import Bars
from normrepro.launch.campaign import Launcher
from normrepro.launch.driver import Pool
from normrepro.launch.processes import Task, spawn

NAMES = ("local", "joblib", "slurm")


@contextmanager
def launch(
    name: str,
    jobs: int | None,
    options: str,
    script: Path,
    tasks: Sequence[Task],
    bars: Bars,
) -> Iterator[Launcher]:
    """Open a launcher; at its end none of its processes is left, but for what Slurm has.

    Args:
        name: One of NAMES.
        jobs: Runs side by side; with Slurm, None leaves it to Slurm.
        options: Slurm's, as "key=value key=value".
        script: train.py.
        tasks: The runs to make.
        bars: Where progress shows.

    Raises:
        ConfigError: The launcher cannot serve here.
    """
    if name == "joblib" and tasks[0].gpus > 1:
        raise ConfigError("LAUNCHER=joblib trains on one process a run: leave GPUS out")
    if name == "joblib":  # each import in its place: both cost time, and the local pool needs none
        from normrepro.launch.through_joblib import Joblib

        yield Joblib(tasks, jobs, bars)
    elif name == "slurm":
        from normrepro.launch import slurm

        given = slurm.parse(options)
        yield slurm.Slurm(
            tasks,
            bars,
            slurm.executor(tasks[0].folder.parent / ".slurm", jobs, tasks[0].gpus, given),
        )
    else:
        with ExitStack() as stack:
            start = spawn
            if len(tasks) > jobs and forks.safe(tasks[0].gpus):
                start = stack.enter_context(forks.Zygote(script)).start
            yield stack.enter_context(Pool(tasks, jobs, bars, start))

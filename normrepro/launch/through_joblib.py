"""Small runs side by side through joblib: each of its workers imports torch once, for all its runs.

The runs of a worker share its process, as those of Hydra's multirun do. A worker that dies takes
the others' runs with it; those go on in a new set of workers from their last checkpoints.
"""

import os
import runpy
import sys
import time
from collections.abc import Iterator, Sequence

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from normrepro.launch.bars import Bars
from normrepro.launch.driver import RESUMES, Outcome
from normrepro.launch.processes import Task, console, environment
from normrepro.record import ROOT, read_result
from normrepro.training import lock
from normrepro.training.interrupt import RESUME


class Joblib:
    """Runs tasks in joblib's workers, so many at a time."""

    def __init__(self, tasks: Sequence[Task], jobs: int, bars: Bars) -> None:
        self.waiting = {task.run: task for task in tasks}
        self.jobs, self.bars = jobs, bars

    def outcomes(self) -> Iterator[Outcome]:
        """Yield each task's outcome once it has ended."""
        for _ in range(RESUMES):
            while self.waiting:
                free = [task for task in self.waiting.values() if not lock.holder(task.folder)]
                if not free:  # other processes have the rest
                    time.sleep(1)
                    free = [task for task in self.waiting.values() if ended(task)]
                    if not free:
                        continue
                try:
                    yield from self.round(free)
                except TerminatedWorkerError as error:
                    self.bars.say(f"a worker died, the others' runs are resumed: {error.args[0]}")
                    break
            else:
                return
        yield from (Outcome(task, None, 1) for task in self.waiting.values())

    def round(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Start every task once; those that were interrupted or are held elsewhere stay."""
        calls = (delayed(work)(task) for task in tasks)
        parallel = Parallel(n_jobs=self.jobs, return_as="generator_unordered", backend="loky")
        for run, code in parallel(calls):
            task = self.waiting[run]
            record = read_result(task.folder / "result.json")
            if record or code not in (lock.HELD, RESUME):
                del self.waiting[run]
                self.bars.skip()
                yield Outcome(task, record, code)


def ended(task: Task) -> bool:
    """Tell whether a run has left its record."""
    return read_result(task.folder / "result.json") is not None


def work(task: Task) -> tuple[str, int]:
    """Run a task's script in this process; return the run's name and the exit code."""
    task.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    os.environ.update(environment(0, 1))
    script, *arguments = task.command[1:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(ROOT))
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(console(task), "ab") as log:
            for number, _ in kept:
                os.dup2(log.fileno(), number)
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    finally:
        sys.path.remove(str(ROOT))
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
    return task.run, code

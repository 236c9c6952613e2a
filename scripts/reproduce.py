"""Make tables: train their missing runs, merge the records, render.

    python scripts/reproduce.py mabn table1 --scale proxy --seeds 3 --jobs 2
    python scripts/reproduce.py mabn          every table and figure of a paper
    python scripts/reproduce.py all           every table and figure of all papers

Finished runs are skipped and killed ones resume, so that the same command goes on where it stopped.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

from normrepro import papers, report  # noqa: E402
from normrepro.config import ConfigError  # noqa: E402
from normrepro.launch import launchers, plan  # noqa: E402
from normrepro.launch.bars import Bars  # noqa: E402
from normrepro.launch.campaign import Campaign  # noqa: E402
from normrepro.launch.driver import Outcome  # noqa: E402
from normrepro.launch.processes import Task, last_lines  # noqa: E402
from normrepro.record import RecordError, read_records  # noqa: E402
from normrepro.tables import Cell, Table  # noqa: E402


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("paper", help="mabn, cbn, ..., or all")
    result.add_argument("table", nargs="?", help="table1, figure2 (with its panels), ...")
    result.add_argument("--scale", default="proxy")
    result.add_argument("--seeds", type=int, help="default: as many as the table declares")
    result.add_argument("--gpus", type=int, default=1, help="GPUs of one run, a process for each")
    result.add_argument("--jobs", type=int, help="runs side by side; at proxy one per core, else 1")
    result.add_argument("--launcher", default="local", choices=launchers.NAMES)
    result.add_argument("--slurm", default="", help="options: 'partition=gpu timeout_min=1440'")
    result.add_argument("--runs", type=Path, default=ROOT / "runs")
    result.add_argument("--results", type=Path, default=ROOT / "results")
    result.add_argument("--no-index", action="store_true", help="leave the index of results alone")
    result.add_argument("--train", type=Path, default=ROOT / "train.py", help=argparse.SUPPRESS)
    return result


def main() -> None:
    signal.signal(signal.SIGTERM, interrupt)
    args = parser().parse_args()
    try:
        sys.exit(reproduce(args))
    except (ConfigError, RecordError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(130)


def interrupt(*_: object) -> None:
    """End as on Ctrl-C, so that the children end too."""
    raise KeyboardInterrupt


def reproduce(args: argparse.Namespace) -> int:
    """Make the tables; return the exit code."""
    tables, others = plan.chosen(args.paper, args.table, args.scale)
    campaign = Campaign(tables, args.scale, args.seeds, args.runs, args.results)
    missing = campaign.begin()
    print_all(campaign.said)
    if missing:
        title = tables[0].label if args.table else f"{len(tables)} tables"
        total = len(campaign.owners())
        jobs = side_by_side(args, len(missing))
        shown = jobs if args.launcher == "local" else 0  # the others' runs tell nothing meanwhile
        bars = Bars(f"{title} {args.scale}", total, total - len(missing), shown)
        launch = partial(launchers.launch, args.launcher, jobs, args.slurm, args.train)
        campaign.train([task(table, cell, args) for table, cell in missing], launch, bars)
    paths = campaign.render(tables)
    if not args.no_index:
        report.write_index(papers.load_all(), read_records(campaign.store.path), args.results)
    if args.table:
        print_all((path.read_text(encoding="utf-8") for path in paths), sys.stdout)
    else:
        print_all([*campaign.summary(), *others], sys.stdout)
    print_all(map(failure, campaign.failed.values()))
    print_all(campaign.broken.values() if args.table else ())
    return 1 if campaign.failed or campaign.broken else 0


def task(table: Table, cell: Cell, args: argparse.Namespace) -> Task:
    """Return the process that trains a cell's run."""
    python, where = [sys.executable], [f"run.paper={table.paper}", f"run.table={table.name}"]
    where.append(f"run.cell='{cell.row} {cell.column}'")
    if args.gpus > 1 and args.launcher != "slurm":  # Slurm starts a task per GPU itself
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.gpus}"]
    runs = args.runs.resolve()
    if runs != ROOT / "runs":  # else the default, which says nothing of this machine to the record
        where.append(f"run.root='{runs}'")
    command = [*python, str(args.train), *cell.overrides, *where]
    return Task(cell.run, runs / cell.run, command, args.gpus)


def side_by_side(args: argparse.Namespace, missing: int) -> int | None:
    """Return how many runs go side by side: at proxy one per core, else one; Slurm knows itself."""
    if args.launcher == "slurm":
        return args.jobs
    here = args.launcher == "joblib" or args.scale in plan.LOCAL_SCALES
    return min(args.jobs or (cores_here() if here else 1), missing)


def cores_here() -> int:
    """Return how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def failure(outcome: Outcome) -> str:
    """Say how a run failed: its command and the end of what it printed."""
    return (
        f"\n{outcome.task.run} failed with exit code {outcome.code}. Its last lines:\n"
        f"{last_lines(outcome.task)}\nTo try it alone:\n{shlex.join(outcome.task.command)}"
    )


def print_all(lines: Iterable[str], file: object = None) -> None:
    """Print lines, to standard error where nothing else is said."""
    for line in lines:
        print(line, file=file or sys.stderr)


if __name__ == "__main__":
    main()

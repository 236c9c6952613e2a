"""Make a table: train its missing runs, merge their records, render and print it.

    python scripts/reproduce.py mabn table1 --scale proxy --seeds 3 --jobs 2

Finished runs are skipped and killed ones resume, so that the same command goes on where it stopped.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

from normrepro import papers, plan, report  # noqa: E402
from normrepro.bars import Bars  # noqa: E402
from normrepro.config import ConfigError  # noqa: E402
from normrepro.driver import Outcome, Pool, Task, last_lines  # noqa: E402
from normrepro.record import RecordError, merge_records, read_records  # noqa: E402
from normrepro.tables import Cell, Table  # noqa: E402


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("paper")
    result.add_argument("table", help="table1, figure2, ...")
    result.add_argument("--scale", default="proxy")
    result.add_argument("--seeds", type=int, help="default: as many as the table declares")
    result.add_argument("--gpus", type=int, default=1, help="GPUs of one run, a process for each")
    result.add_argument("--jobs", type=int, help="runs side by side; at proxy one per core, else 1")
    result.add_argument("--runs", type=Path, default=ROOT / "runs")
    result.add_argument("--results", type=Path, default=ROOT / "results")
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
    """Make the table; return the exit code."""
    table = papers.load_table(args.paper, args.table)
    cells = plan.distinct(table.cells(args.scale, args.seeds))
    store = args.results / "records.jsonl"
    records = read_records(store)
    done = {cell.run: plan.ended(cell, args.scale, records, args.runs) for cell in cells}
    missing = [cell for cell in cells if done[cell.run] is None]
    print_all(merge_records(store, [record for record in done.values() if record]))
    failed = train(table, args, missing, len(cells), store) if missing else []
    path = report.write(table, args.scale, read_records(store), args.results)
    report.write_index(papers.load_all(), read_records(store), args.results)
    print(path.read_text(encoding="utf-8"))
    print_all(failure(outcome) for outcome in failed)
    return 1 if failed else 0


def train(
    table: Table, args: argparse.Namespace, missing: Sequence[Cell], total: int, store: Path
) -> list[Outcome]:
    """Train the missing runs, merging each record at once; return those that failed."""
    jobs = min(args.jobs or default_jobs(args.scale), len(missing))
    tasks = [task(table, cell, args) for cell in missing]
    failed = []
    bars = Bars(f"{table.paper} {table.name} {args.scale}", total, total - len(missing), jobs)
    try:
        with Pool(tasks, jobs, bars) as pool:
            for outcome in pool.outcomes():
                if outcome.record is None:
                    failed.append(outcome)
                    bars.say(f"{outcome.task.run} failed with exit code {outcome.code}")
                    continue
                for message in merge_records(store, [outcome.record]):
                    bars.say(message)
                bars.say(f"[{bars.done}/{total}] {ended(outcome, table)}, ETA {bars.eta()}")
    finally:
        bars.close()
    return failed


def task(table: Table, cell: Cell, args: argparse.Namespace) -> Task:
    """Return the process that trains a cell's run."""
    python, where = [sys.executable], [f"run.paper={table.paper}", f"run.table={table.name}"]
    if args.gpus > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.gpus}"]
    runs = args.runs.resolve()
    if runs != ROOT / "runs":  # else the default, which says nothing of this machine to the record
        where.append(f"run.root='{runs}'")
    command = [*python, str(args.train), *cell.overrides, *where]
    return Task(cell.run, runs / cell.run, command, args.gpus)


def default_jobs(scale: str) -> int:
    """Return one run per core that this process may use at proxy, else one."""
    if scale not in plan.LOCAL_SCALES:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def ended(outcome: Outcome, table: Table) -> str:
    """Say how a run ended, in a line."""
    record = outcome.record or {}
    number = record.get("metrics", {}).get(table.metric)
    state = f"{table.metric} {number:.4g}" if record["status"] == "finished" else "diverged"
    return f"{outcome.task.run}: {state}, {record['seconds']:.0f} s"


def failure(outcome: Outcome) -> str:
    """Say how a run failed: its command and the end of what it printed."""
    return (
        f"\n{outcome.task.run} failed with exit code {outcome.code}. Its last lines:\n"
        f"{last_lines(outcome.task)}\nTo try it alone:\n{shlex.join(outcome.task.command)}"
    )


def print_all(lines: Iterable[str]) -> None:
    """Print lines to standard error."""
    for line in lines:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()

"""Print what a table still needs: `python scripts/plan.py mabn table1 --scale paper --gpus 8`."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

from normrepro import papers, plan  # noqa: E402
from normrepro.config import ConfigError  # noqa: E402
from normrepro.record import RecordError, read_records  # noqa: E402


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("paper")
    result.add_argument("table", help="table1, figure2, ...")
    result.add_argument("--scale", default="proxy")
    result.add_argument("--seeds", type=int, help="default: as many as the table declares")
    result.add_argument("--gpus", type=int, default=1, help="processes per run, one per GPU")
    result.add_argument("--tflops", type=float, default=plan.THROUGHPUT, help="per GPU, sustained")
    result.add_argument("--runs", type=Path, default=ROOT / "runs")
    result.add_argument("--results", type=Path, default=ROOT / "results")
    return result


def main() -> None:
    args = parser().parse_args()
    try:
        table = papers.load_table(args.paper, args.table)
        records = read_records(args.results / "records.jsonl")
        print(
            plan.render(table, args.scale, records, args.seeds, args.gpus, args.tflops, args.runs),
            end="",
        )
    except (ConfigError, RecordError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

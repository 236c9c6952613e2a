"""Print what tables still need.

python scripts/plan.py mabn table1 --scale paper --gpus 8   cells, cost, commands of a table
python scripts/plan.py mabn                                 a line per table of a paper
python scripts/plan.py all                                  a line per table of all papers
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

from normrepro.config import ConfigError  # noqa: E402
from normrepro.launch import cost, plan  # noqa: E402
from normrepro.record import RecordError, read_records  # noqa: E402


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("paper", help="mabn, cbn, ..., or all")
    result.add_argument("table", nargs="?", help="table1, figure2 (with its panels), ...")
    result.add_argument("--scale", default="proxy")
    result.add_argument("--seeds", type=int, help="default: as many as the table declares")
    result.add_argument("--gpus", type=int, default=1, help="processes per run, one per GPU")
    result.add_argument("--tflops", type=float, default=cost.THROUGHPUT, help="per GPU, sustained")
    result.add_argument("--runs", type=Path, default=ROOT / "runs")
    result.add_argument("--results", type=Path, default=ROOT / "results")
    return result


def main() -> None:
    args = parser().parse_args()
    try:
        tables, others = plan.chosen(args.paper, args.table, args.scale)
        records = read_records(args.results / "records.jsonl")
        known = (args.scale, records, args.seeds)
        if args.table and not tables[1:]:
            text = plan.render(tables[0], *known, args.gpus, args.tflops, args.runs)
        else:
            text = plan.overview(tables, others, *known, args.tflops, args.runs)
        print(text, end="")
    except (ConfigError, RecordError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

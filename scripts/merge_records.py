"""Merge records of other machines: `python scripts/merge_records.py there/records.jsonl`.

Every record is looked at first: its form, its numbers, and whether its name is that of its config.
Of a run that is there already with other results both values are told, and ours stays, with exit
code 1; `--keep ours` or `--keep theirs` decides. Then `make report` renders what came.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

from normrepro import merging  # noqa: E402
from normrepro.record import RecordError  # noqa: E402


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("files", type=Path, nargs="+")
    result.add_argument("--into", type=Path, default=ROOT / "results" / "records.jsonl")
    result.add_argument("--keep", choices=("ours", "theirs"), help="whose results stay")
    return result


def main() -> int:
    args = parser().parse_args()
    try:
        read = [merging.read(path) for path in args.files]
        wrong = [problem for _, problems in read for problem in problems]
        if wrong:
            print(*wrong, "nothing was merged", sep="\n", file=sys.stderr)
            return 2
        records = [record for sound, _ in read for record in sound]
        count, conflicts = merging.merge(args.into, records, args.keep)
    except (OSError, RecordError) as error:
        sys.exit(f"error: {error}")
    print(*conflicts, sep="\n", file=sys.stderr, end="\n" if conflicts else "")
    print(f"{count} of {len(records)} records went into {args.into}; {len(conflicts)} conflicts")
    return 1 if conflicts and not args.keep else 0


if __name__ == "__main__":
    sys.exit(main())

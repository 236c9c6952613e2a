"""Render every table that has records, and the index of all: `python scripts/report.py`."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

from normrepro import papers, report  # noqa: E402
from normrepro.config import ConfigError  # noqa: E402
from normrepro.record import RecordError  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    try:
        for path in report.write_all(papers.load_all(), args.results):
            print(path)
    except (ConfigError, RecordError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Check the claims of the papers and write results/claims.md: `scripts/check_claims.py`."""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed
os.environ.setdefault("OMP_NUM_THREADS", "1")

from normrepro.claims import declared, load_checks, page  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="ID", help="check these; write no file")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "claims.md")
    args = parser.parse_args()
    claims = [c for c in declared.load() if not args.only or c.id in args.only]
    if not claims:
        sys.exit(f"error: none of {', '.join(args.only)} is a claim; they stand in {args.out.name}")
    measured = measure({check for claim in claims for check in claim.checks})
    failures = [text for claim in claims for text in page.broken(claim, measured)]
    if args.only:
        for claim in claims:
            print(claim.id, page.verdict(claim, measured), page.numbers(claim, measured))
    else:
        args.out.write_text(page.render(claims, measured), encoding="utf-8")
        print(args.out)
    if failures:
        sys.exit("\n".join(["claims that are not as expected:", *failures]))


def measure(names: set[str]) -> dict[str, dict[str, float]]:
    """Run the checks; the slow ones tell their time."""
    checks, measured = load_checks(), {}
    for name in sorted(names):
        start = time.perf_counter()
        measured[name] = {key: float(value) for key, value in checks[name]().items()}
        spent = time.perf_counter() - start
        if spent > 1:
            print(f"{name}: {spent:.1f} s", file=sys.stderr)
    return measured


if __name__ == "__main__":
    main()

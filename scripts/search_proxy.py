"""Look for a proxy setting in which the four cells of MABN's Table 1 differ as the paper says, and
report every trial.

    python scripts/search_proxy.py [--jobs 2]

The seeds are not those of the table. Every setting that was tried stands in SETTINGS, whatever came
out; the outcome is results/proxy_search.jsonl (a line per run) and results/proxy_search.md.
Finished runs are not trained again.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from normrepro.config import compose, run_dir
from normrepro.record import read_result

RESULTS = Path(__file__).resolve().parents[1] / "results"
SEEDS = (100, 101, 102)
CELLS = {
    "BN (32)": ["norm=bn", "batch.norm=32"],
    "BN (2)": ["norm=bn", "batch.norm=2"],
    "BRN (2)": ["norm=brn", "batch.norm=2"],
    "MABN (2)": ["norm=mabn", "batch.norm=2"],
}
# First round: the recipe's own augmentation, 64 images a step.
FIRST = [
    [f"model.build.strides={strides}", f"recipe.optimizer.lr={lr}", "recipe.epochs=15"]
    for strides in ("[1,2,2]", "[2,2,2]")
    for lr in (0.1, 0.5)
]
# Second round: 32 images a step (so more steps), with and without shortcuts and augmentation.
SECOND = [
    [
        *("batch.total=32", "batch.devices=1", f"recipe.epochs={epochs}"),
        f"recipe.augment={augment}",
        f"model.build.residual={residual}",
        f"recipe.optimizer.lr={lr}",
    ]
    for epochs, augment, residual, lr in [
        (25, "none", "true", 0.05),
        (25, "none", "true", 0.2),
        (25, "none", "false", 0.05),
        (12, "none", "false", 0.05),
        (12, "none", "false", 0.1),
        (25, "none", "false", 0.2),
        (25, "light", "true", 0.05),
        (25, "light", "false", 0.05),
        (12, "light", "false", 0.05),
    ]
]
SETTINGS = FIRST + SECOND


def runs() -> Iterator[tuple[int, str, int, list[str]]]:
    """Yield (setting, cell, seed, overrides) of every run of the search."""
    for number, setting in enumerate(SETTINGS):
        for seed in SEEDS:
            for cell, overrides in CELLS.items():
                yield number, cell, seed, [*setting, *overrides, f"seed={seed}"]


def train(overrides: list[str]) -> None:
    """Train one run of the search in this process."""
    os.environ.update(WANDB_MODE="disabled", TQDM_DISABLE="1")
    cfg = compose(overrides)
    if read_result(run_dir(cfg) / "result.json") is None:
        from normrepro import engine

        run_dir(cfg).mkdir(parents=True, exist_ok=True)
        engine.run(cfg)


def collect() -> list[dict]:
    """Read what the runs of the search left."""
    lines = []
    for number, cell, seed, overrides in runs():
        record = read_result(run_dir(compose(overrides)) / "result.json")
        if record is not None:
            line = {"setting": number, "cell": cell, "seed": seed, "overrides": overrides}
            kept = {k: record[k] for k in ("run", "status", "metrics", "seconds")}
            lines.append(line | kept | {"commit": record["environment"]["commit"]})
    return lines


def render(lines: list[dict]) -> str:
    """Return the report: per setting the mean error of each cell, and how often the order shows."""
    head = ["setting", *CELLS, "BN (2) worst", "order of the paper"]
    rows = [head, ["---"] * len(head)]
    for number, setting in enumerate(SETTINGS):
        errors = {c: [_error(lines, number, c, s) for s in SEEDS] for c in CELLS}
        rows.append(["`" + " ".join(setting) + "`", *map(_mean, errors.values()), *_orders(errors)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        "# The search for the proxy of MABN's Table 1\n\n"
        f"Every setting that was tried, with search seeds {', '.join(map(str, SEEDS))}; the table "
        "itself uses others. Mean top-1 error in percent on scikit-learn's digits at the last "
        "epoch (`-`: a run diverged, an em dash: not run); normalization batch in parentheses. The "
        "last columns count seeds in which BN (2) has the largest error, and in which "
        "BN (32) <= MABN (2) < BRN (2) < BN (2) holds.\n\n"
        f"{table}\n\nTrained by `python scripts/search_proxy.py`; a line per run in "
        "`proxy_search.jsonl`.\n"
    )


def _error(lines: list[dict], number: int, cell: str, seed: int) -> float | None:
    for line in lines:
        if (line["setting"], line["cell"], line["seed"]) == (number, cell, seed):
            return line["metrics"]["error"] if line["status"] == "finished" else float("inf")
    return None


def _mean(errors: list[float | None]) -> str:
    if None in errors:
        return "—"
    mean = statistics.fmean(errors)
    return "-" if mean == float("inf") else f"{mean:.1f}"


def _orders(errors: dict[str, list[float | None]]) -> list[str]:
    rows = [row for row in zip(*errors.values(), strict=True) if None not in row]
    worst = sum(small > max(regular, renorm, mabn) for regular, small, renorm, mabn in rows)
    order = sum(regular <= mabn < renorm < small for regular, small, renorm, mabn in rows)
    return [f"{worst} of {len(rows)}", f"{order} of {len(rows)}"]


def main() -> None:
    """Train what is missing and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument(
        "--report", action="store_true", help="only write the report of what there is"
    )
    args = parser.parse_args()
    if not args.report:
        work = [overrides for *_, overrides in runs()]
        with get_context("spawn").Pool(args.jobs) as pool:
            list(tqdm(pool.imap(train, work), total=len(work), unit="run"))
    lines = collect()
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    (RESULTS / "proxy_search.jsonl").write_text(text, encoding="utf-8")
    (RESULTS / "proxy_search.md").write_text(render(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

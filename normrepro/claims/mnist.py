"""XBNBlock's section 4 by the committed runs on MNIST, at the paper's scale."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from scipy.stats import spearmanr

from normrepro import papers
from normrepro.claims import check
from normrepro.metrics import value
from normrepro.record import Record, read_records
from normrepro.tables import collect

RECORDS = Path(__file__).resolve().parents[2] / "results" / "records.jsonl"
SEEDS, SIZES, LAYERS = (0, 1, 2), (32, 128, 512, 1024), 20


def runs(paper: str, table: str, scale: str, seeds: Sequence[int] = SEEDS) -> dict[str, list]:
    """Return a table's committed records of some seeds by "row column".

    The seeds are fixed, so that further ones leave the page of claims as it is.
    """
    found = collect(papers.load_table(paper, table), scale, read_records(RECORDS))
    return {
        " ".join(key): [own[seed] for seed in seeds]
        for key, own in found.items()
        if set(seeds) <= set(own)
    }


def average(records: Sequence[Record], metric: str) -> float:
    """Return the mean of a metric over seeds; a diverged run makes it NaN."""
    values = [value(record, metric) for record in records]
    return float("nan") if None in values else fmean(values)


@check
def mnist_setup_one() -> Mapping[str, float]:
    """Test minus training error along the paper's run, training set = test set, one seed."""
    (record,) = runs("xbnblock", "figure2a", "paper", (0,))["bn train_5"]
    found = {}
    for epoch in (5, 10, 30, 80):
        gap = value(record, f"error@{epoch}") - value(record, f"train_error@{epoch}")
        found[f"MNIST_gap_at_step_{epoch}"] = round(gap, 2)
    return found | {"MNIST_training_error_at_80": value(record, "train_error@80")}


@check
def mnist_early_shift() -> Mapping[str, float]:
    """Depth against the shift of the deviation at step 5; GNBN's largest beside BN's; one seed."""
    bn, both = (
        runs("xbnblock", "figure4b", "paper", (0,))[f"{row} max_5"][0] for row in ("bn", "gnbn")
    )
    esm = [value(bn, f"esm_std@5[{layer}]") for layer in range(1, LAYERS + 1)]
    blocked = [value(both, f"esm_std@5[{layer}]") for layer in range(1, LAYERS + 1)]
    largest = max(v for v in blocked if v is not None)
    return {
        "MNIST_correlation_at_step_5": float(spearmanr(range(LAYERS), esm).statistic),
        "MNIST_largest_of_BN": max(esm),
        "MNIST_largest_of_GNBN": largest,
        "MNIST_GNBN_over_BN": largest / max(esm),
    }


@check
def mnist_setup_two() -> Mapping[str, float]:
    """Errors and shifts after training on samples of the test set, means over 3 seeds."""
    own, found = runs("xbnblock", "figure5b", "paper"), {}
    for size in SIZES:
        bn, both = (own[f"{row} n{size}"] for row in ("bn", "gnbn"))
        found[f"MNIST_BN_{size}"] = average(bn, "error")
        found[f"MNIST_GNBN_{size}"] = average(both, "error")
        found[f"MNIST_shift_{size}"] = average(bn, f"esm_std@last[{LAYERS}]")
    for name in ("BN", "GNBN", "shift"):
        values = [found[f"MNIST_{name}_{size}"] for size in SIZES]
        falls = (a - b for a, b in pairwise(values))
        found[f"MNIST_smallest_fall_{name}"] = min(falls)
    gains = (found[f"MNIST_BN_{size}"] - found[f"MNIST_GNBN_{size}"] for size in SIZES)
    return found | {"MNIST_smallest_gain_of_GNBN": min(gains)}


@check
def mnist_depth_at_the_end() -> Mapping[str, float]:
    """Correlation of depth and shift of the deviation after training; means over 3 seeds."""
    own, found = runs("xbnblock", "figure5b", "paper"), {}
    for size in SIZES:
        ratios = []
        for record in own[f"bn n{size}"]:
            esm = [value(record, f"esm_std@last[{layer}]") for layer in range(1, LAYERS + 1)]
            ratios.append(float(spearmanr(range(LAYERS), esm).statistic))
        found[f"MNIST_correlation_at_{size}"] = fmean(ratios)
    return found


@check
def mnist_without_norm() -> Mapping[str, float]:
    """Test errors after 32 images with BN and without a norm, and the latter by seed."""
    own = runs("xbnblock", "figure3a", "paper")
    errors = [value(record, "error") for record in own["none n32"]]
    return {
        "MNIST_BN": average(own["bn n32"], "error"),
        "MNIST_none": fmean(errors),
        "MNIST_none_best_seed": min(errors),
        "MNIST_none_worst_seed": max(errors),
    }

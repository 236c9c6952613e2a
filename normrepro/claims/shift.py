"""Estimation shift in a deep perceptron on digits (XBNBlock, section 4): setups one and two."""

from collections.abc import Mapping
from functools import cache

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normrepro import convert, norms
from normrepro.claims import check
from normrepro.diagnostics.base import layers
from normrepro.diagnostics.shift import Meter
from normrepro.distributed import Ranks
from normrepro.models.mlp import mlp

DEPTH, WIDTH, EPOCHS = 20, 64, 80
SIZES, ALL, EARLY = (32, 128, 512), 597, (5, 10)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return the last 597 digits (N, 1, 8, 8), standardized, and their labels."""
    found = load_digits()
    x = torch.from_numpy(found.images[-597:]).double()[:, None]
    return (x - x.mean()) / x.std(), torch.from_numpy(found.target[-597:]).long()


@cache
def run(norm: str, size: int, seed: int = 0, watch: tuple[int, ...] = ()) -> Mapping[str, list]:
    """Train by full batches on a sample of the set that judges; return what was seen.

    Returns:
        Lists over the epochs of `watch` and the last: train (error by batch statistics on the
        training images), test (by running ones, on all), esm (deviation's, per layer), same (as
        `esm`, with the layers before in training mode).
    """
    torch.manual_seed(seed)
    net = mlp(DEPTH, WIDTH, size=8).double()
    net = convert(net, _bn if norm == "bn" else norm)
    x, labels = digits()
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:size]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen: dict[str, list] = {"train": [], "test": [], "esm": [], "same": []}
    for epoch in range(1, EPOCHS + 1):
        optimizer.zero_grad()
        with norms.step(net):
            nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
            optimizer.step()
        if epoch in watch or epoch == EPOCHS:
            _judge(net, x, labels, rows, seen)
    return seen


def _bn(channels: int, **options: object) -> norms.BatchNorm:
    return norms.BatchNorm(channels, momentum=0.9, **options)


@torch.no_grad()
def _judge(net: nn.Module, x: Tensor, labels: Tensor, rows: Tensor, seen: dict[str, list]) -> None:
    with norms.step(net) as step:  # by batch statistics, and no estimate moves
        step.skip()
        found = net(x[rows]).argmax(1)
    seen["train"].append(100 * float((found != labels[rows]).double().mean()))
    for name, mode in (("same", True), ("esm", False)):
        known = [m for m in layers(net).values() if isinstance(m, norms.BatchNorm)]
        meters = [Meter(m) for m in known]
        handles = [m.register_forward_pre_hook(h) for m, h in zip(known, meters, strict=True)]
        with norms.step(net.train(mode)) as step:
            step.skip()
            found = net(x).argmax(1)
        for handle in handles:
            handle.remove()
        seen[name].append([meter.shift(Ranks(0, 1, torch.device("cpu")))[1] for meter in meters])
    net.train()
    seen["test"].append(100 * float((found != labels).double().mean()))


def rounded(found: Mapping[str, float]) -> Mapping[str, float]:
    """Leave the digits that other machines' last bits do not move."""
    return {name: round(number, 1) for name, number in found.items()}


@check
def gap_of_setup_one() -> Mapping[str, float]:
    """Test minus training error with the training set as test set, early and at the end."""
    seen = [run("bn", ALL, seed, EARLY) for seed in range(2)]
    gaps = [[b - a for a, b in zip(s["train"], s["test"], strict=True)] for s in seen]
    early = min(max(own[:2]) for own in gaps)
    return rounded({"early": early, "at_the_end": max(own[-1] for own in gaps)})


@check
def depth_order() -> Mapping[str, float]:
    """Spearman's correlation of depth and ESM of the deviation at steps 5 and 10."""
    found = {}
    for at, step in enumerate(EARLY):
        esm = run("bn", ALL, 0, EARLY)["esm"][at]
        found[f"correlation_at_step_{step}"] = float(spearmanr(range(len(esm)), esm).statistic)
        found[f"layer_1_at_step_{step}"], found[f"layer_20_at_step_{step}"] = esm[0], esm[-1]
    return rounded(found)


@check
def blocking() -> Mapping[str, float]:
    """The largest ESM of a layer at step 5 with GN in the odd layers, beside BN."""
    bn, both = (run(norm, ALL, 0, EARLY)["esm"][0] for norm in ("bn", "gnbn"))
    return rounded(
        {
            "BN": max(bn),
            "GNBN": max(both),
            "GNBN_over_BN": max(both) / max(bn),
            "GNBN_max_over_min": max(both) / min(both),
        }
    )


@check
def setup_two() -> Mapping[str, float]:
    """Test errors after training on 32, 128, 512 of the test images; means over 2 seeds."""
    found, trained = {}, 0.0
    for norm in ("bn", "gnbn"):
        for size in SIZES:
            seen = [run(norm, size, seed) for seed in range(2)]
            found[f"{norm}_{size}"] = sum(s["test"][-1] for s in seen) / 2
            trained = max(trained, *(s["train"][-1] for s in seen))
            if norm == "bn":
                found[f"esm_{size}"] = sum(max(s["esm"][-1]) for s in seen) / 2
    found["largest_training_error"] = trained
    for name in ("bn", "gnbn", "esm"):
        a, b, c = (found[f"{name}_{size}"] for size in SIZES)
        found[f"smallest_fall_{name}"] = min(a - b, b - c)
    found["smallest_gain_of_gnbn"] = min(found[f"bn_{s}"] - found[f"gnbn_{s}"] for s in SIZES)
    return rounded(found)


@check
def depth_order_at_the_end() -> Mapping[str, float]:
    """Spearman's correlation of depth and ESM after training on 32 images."""
    esm = [run("bn", 32, seed)["esm"][-1] for seed in range(2)]
    return rounded(
        {
            f"correlation_seed_{seed}": float(spearmanr(range(len(own)), own).statistic)
            for seed, own in enumerate(esm)
        }
    )


@check
def modes_of_earlier_layers() -> Mapping[str, float]:
    """ESM of the last layer at step 5, with the layers before in evaluation and training mode."""
    seen = run("bn", ALL, 0, EARLY)
    return rounded({"evaluation": seen["esm"][0][-1], "training": seen["same"][0][-1]})

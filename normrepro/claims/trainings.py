"""Claims about trainings: by the committed records, and by small nets of our own."""

from collections.abc import Mapping
from functools import cache
from math import comb
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normrepro import convert, norms, papers
from normrepro.claims import check
from normrepro.claims.tools import draw
from normrepro.metrics import value
from normrepro.models.mlp import mlp
from normrepro.record import read_records
from normrepro.tables import collect

RECORDS = Path(__file__).resolve().parents[2] / "results" / "records.jsonl"


@check
def ablation_order() -> Mapping[str, float]:
    """Experiments 3 and 8 of MABN's Table 2 at proxy scale, seed by seed, from the records."""
    table = papers.load_table("mabn", "table2")
    found = collect(table, "proxy", read_records(RECORDS))
    three, eight = ({s: value(r, "error") for s, r in found[row, "error"].items()} for row in "38")
    seeds = sorted({*three} & {*eight})
    wins = sum((eight[s] or 100.0) < (three[s] or 100.0) for s in seeds)
    tail = sum(comb(len(seeds), k) for k in range(wins, len(seeds) + 1)) / 2 ** len(seeds)
    return {"seeds": len(seeds), "8_better_than_3_in": wins, "sign_test_p": tail}


@check
def vanilla_with_window() -> Mapping[str, float]:
    """Experiment 5 of Table 2 on a perceptron of 20 layers, groups of 2: the loss, 3 seeds."""
    lost, ends = 0, {"vanilla": 0.0, "modified": 0.0}
    for seed in range(3):
        for name, centre in {"vanilla": False, "modified": True}.items():
            losses = _losses(name, centre, seed)
            ends[name] += losses[-1] / 3
            lost += name == "vanilla" and not losses[-1] < 0.9 * losses[0]
    rounded = {f"loss_{name}": round(loss, 1) for name, loss in ends.items()}
    return {"vanilla_runs_that_do_not_learn": lost} | rounded


def _losses(structure: str, centre: bool, seed: int) -> list[float]:
    torch.manual_seed(seed)
    net = mlp(20, 32, size=8).double()
    net = convert(net, _mabn(structure, centre), group=2, example=draw(4, 1, 8, 8))
    x, labels, order = (*_digits(), torch.Generator().manual_seed(seed))
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(100):
        rows = torch.randperm(1200, generator=order)[:32]
        optimizer.zero_grad()
        with norms.step(net):
            loss = nn.functional.cross_entropy(net(x[rows]), labels[rows])
            loss.backward()
            optimizer.step()
        losses.append(min(float(loss.detach().nan_to_num(99.0)), 99.0))
    return [sum(losses[:5]) / 5, sum(losses[-20:]) / 20]


def _mabn(structure: str, centre: bool) -> object:
    def build(channels: int, **options: object) -> norms.MABN:
        return norms.MABN(channels, structure=structure, centre=centre, **options)

    return build


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    x = torch.from_numpy(found.images).double()[:, None]
    return (x - x.mean()) / x.std(), torch.from_numpy(found.target).long()


@cache
def _trained(size: int, seed: int) -> nn.Module:
    """Train a small convolutional net with EvalNorm layers on 1,200 digits, 3 epochs."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for inputs, outputs in ((1, 8), (8, 16), (16, 16)):
        conv = nn.Conv2d(inputs, outputs, 3, stride=1 + (outputs > 8), padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10))
    net = convert(net.double(), "evalnorm", group=size)
    x, labels = (v[:1200] for v in _digits())
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.3**epoch
        for rows in torch.randperm(1200, generator=order)[:1184].split(32):
            optimizer.zero_grad()
            with norms.step(net):
                nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
                optimizer.step()
    return net.eval()


@check
def evalnorm_beside_ema() -> Mapping[str, float]:
    """Errors of the same weights by EMA and by EN on 597 digits, 3 seeds at B = 2 and 2 at 8."""
    x, labels = (v[1200:] for v in _digits())
    found = {"worst_of_EMA_minus_EN": 100.0}
    for size, seeds in ((2, 3), (8, 2)):
        for rule in ("ema", None):
            errors = []
            for seed in range(seeds):
                net = _trained(size, seed)
                with norms.evaluation_rule(net, rule), torch.no_grad():
                    errors.append(float((net(x).argmax(1) != labels).double().mean()))
            found[f"{'EMA' if rule else 'EN'}_at_B_{size}"] = 100 * sum(errors) / seeds
        gap = found[f"EMA_at_B_{size}"] - found[f"EN_at_B_{size}"]
        found["worst_of_EMA_minus_EN"] = min(found["worst_of_EMA_minus_EN"], gap)
    return {name: round(number, 1) for name, number in found.items()}


@check
def offline_beside_online() -> Mapping[str, float]:
    """Alpha and beta at the end of training, and fitted to the frozen weights until they rest."""
    found = {}
    x = _digits()[0][:1184]
    for size in (2, 4):
        net = _trained(size, 0)
        kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
        own = [[float(m.alpha), float(m.beta)] for m in net if isinstance(m, norms.EvalNorm)]
        fit = norms.fit_evalnorm(net, x.split(32), epochs=4, lr=0.3)
        apart = torch.tensor([*fit.values()]) - torch.tensor(own)
        found[f"largest_difference_at_B_{size}"] = round(float(apart.abs().max()), 2)
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[name])  # the net is shared with the other check
    return found


@check
def stopped_gradient() -> Mapping[str, float]:
    """Gradients with alpha and beta estimated and without; how far the two moved."""
    x, found, layers = draw(8, 4, 5), [], []
    for method in ("online", "fixed"):
        layer = norms.EvalNorm(4, group=2, method=method).double()
        for step in range(3):
            y = layer(draw(8, 4, 5, seed=step).requires_grad_())
            y.sin().sum().backward()
        found.append(torch.cat([p.grad for p in layer.parameters()]))
        layers.append(layer)
        layer(x)
    moved = abs(float(layers[0].alpha - layers[1].alpha))
    return {"gradients": float((found[0] - found[1]).abs().max()), "alpha_moved_by": moved}

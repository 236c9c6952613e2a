"""Claims about trainings: by the committed records, and by small nets of our own."""

from collections.abc import Mapping
from functools import cache, partial
from math import comb

import torch
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normrepro import convert, norms
from normrepro.claims import check
from normrepro.claims.mnist import runs
from normrepro.claims.tools import draw
from normrepro.metrics import value


@check
def ablation_order() -> Mapping[str, float]:
    """Experiments 3 and 8 of MABN's Table 2 at proxy scale, seed by seed, from the records."""
    own = runs("mabn", "table2", "proxy", range(6))
    pairs = zip(own["3 error"], own["8 error"], strict=True)
    wins = sum((value(b, "error") or 100.0) < (value(a, "error") or 100.0) for a, b in pairs)
    tail = sum(comb(6, k) for k in range(wins, 7)) / 2**6
    return {"seeds": 6, "8_better_than_3_in": wins, "sign_test_p": tail}


@check
def vanilla_with_window() -> Mapping[str, float]:
    """Experiments 5 and 8 of Table 2 on a net of 8 convolutions: runs that do not learn, of 2."""
    found = {"vanilla": 0, "modified": 0}
    x, labels = (v[:1184] for v in _digits())
    for name in found:
        build = partial(norms.MABN, structure=name, centre=name == "modified")
        for seed in range(2):
            net = _train(_deep(8, seed), build, 2, seed, epochs=2)
            with torch.no_grad():
                error = float((net(x).argmax(1) != labels).double().mean())
            found[name] += not error < 0.8
    return {f"{name}_runs_that_do_not_learn": lost for name, lost in found.items()}


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    x = torch.from_numpy(found.images).double()[:, None]
    return (x - x.mean()) / x.std(), torch.from_numpy(found.target).long()


def _deep(depth: int, seed: int) -> nn.Module:
    """Make a plain net of convolutions, of 8 channels and then of 16."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for place in range(depth):
        inputs, outputs = (1, 8) if place == 0 else (8 if place == 1 else 16, 16)
        conv = nn.Conv2d(inputs, outputs, 3, 1 + (place == 1), padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def _train(net: nn.Module, norm: object, size: int, seed: int, epochs: int = 3) -> nn.Module:
    """Train a net on 1,184 digits, 32 a step, in groups of `size`; return it for evaluation."""
    x, labels = _digits()
    net = convert(net.double(), norm, group=size, example=x[:4])
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.3**epoch
        for rows in torch.randperm(1200, generator=order)[:1184].split(32):
            optimizer.zero_grad()
            with norms.step(net):
                nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
                optimizer.step()
    return net.eval()


@cache
def _trained(depth: int, size: int, seed: int) -> nn.Module:
    return _train(_deep(depth, seed), "evalnorm", size, seed)


@check
def evalnorm_beside_ema() -> Mapping[str, float]:
    """Errors by EMA minus errors by EN, of the same weights, on 597 digits; over 3 seeds.

    Also: images, over the seeds, that EN alone has right in 3 layers at B = 2, and EMA alone.
    """
    x, labels = (v[1200:] for v in _digits())
    found, gains = {}, {}
    for depth, size in ((3, 8), (8, 2), (3, 2)):
        only = {"EN": 0, "EMA": 0}
        for seed in range(3):
            net = _trained(depth, size, seed)
            with torch.no_grad():
                by_en = net(x).argmax(1) == labels
                with norms.evaluation_rule(net, "ema"):
                    by_ema = net(x).argmax(1) == labels
            only["EN"] += int((by_en & ~by_ema).sum())
            only["EMA"] += int((by_ema & ~by_en).sum())
        gains[depth, size] = round(100 * (only["EN"] - only["EMA"]) / (3 * len(labels)), 1)
        found[f"points_gained_by_{depth}_layers_at_B_{size}"] = gains[depth, size]
    found |= {f"{name}_alone_right": count for name, count in only.items()}
    found["McNemar_p"] = float(binomtest(only["EMA"], sum(only.values())).pvalue)
    return found | {"gap_of_2_over_8": round(gains[3, 2] - gains[3, 8], 1)}


@check
def offline_beside_online() -> Mapping[str, float]:
    """Alpha and beta at the end of training, and fitted to the frozen weights until they rest."""
    found = {}
    x = _digits()[0][:1184]
    for size in (2, 4):
        net = _trained(3, size, 0)
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

"""How good CBN's statistics are while a net trains, how they depend on weights, what they cost."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import draw
from normrepro.norms.cbn_window import usual_length

SIZE, SAMPLES = 8, 512


@check
def dependence_on_earlier_weights() -> Mapping[str, float]:
    """||d mu^l / d theta^r|| / ||d mu^l / d theta^l|| for r = l - 1, l - 2 at initialization."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(16 if i else 3, 16, 3, padding=1, bias=False).double() for i in range(6)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    x, last = draw(4, 3, 8, 8), []
    for conv in convs:
        last.append(conv(x))
        x = torch.relu(norms.BatchNorm(16, affine=False).double()(last[-1]))
    found: dict[str, list[float]] = {}
    for place in range(2, 6):
        chain = [conv.weight for conv in convs[place - 2 : place + 1]][::-1]
        for name, power in {"mu": 1, "nu": 2}.items():
            statistic = last[place].pow(power).mean((0, 2, 3))
            sizes = torch.zeros(3)
            for v in torch.eye(16).double():
                parts = torch.autograd.grad(statistic, chain, v, retain_graph=True)
                sizes += torch.stack([p.square().sum() for p in parts])
            for back in (1, 2):
                ratio = float((sizes[back] / sizes[0]).sqrt())
                found.setdefault(f"{name}_{back}_back", []).append(ratio)
    return {name: sum(values) / len(values) for name, values in found.items()}


@cache
def squared_errors(rate: float) -> Mapping[tuple[str, int], float]:
    """Train a perceptron of 4 layers by BN; return how wrong the mean of each layer is.

    Layers of CBN stand beside the third BN and see its inputs: naive and compensated, for several
    k. The reference is the mean over all 512 samples by the weights of that step.
    """
    torch.manual_seed(0)
    maps = [nn.Linear(16, 16).double() for _ in range(4)]
    plain = [norms.BatchNorm(16).double() for _ in range(4)]
    head = nn.Linear(16, 4).double()
    beside = {
        (name, k): _beside(maps[2], k, order)
        for k in (2, 4, 8, 16)
        for name, order in {"naive": 0, "CBN": 1}.items()
    }
    data, labels = draw(SAMPLES, 16), draw(SAMPLES, 4, seed=1).argmax(1)
    parameters = [p for m in (*maps, *plain, head) for p in m.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=rate)
    sums = dict.fromkeys([("BN", 1), *beside], 0.0)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    for step in range(2 * SAMPLES // SIZE):
        rows = order.roll(-step * SIZE)[:SIZE]
        optimizer.zero_grad()
        x = data[rows]
        for place, (linear, bn) in enumerate(zip(maps, plain, strict=True)):
            x = linear(x)
            if place == 2 and step >= 32:
                wanted = _reference(maps, plain, data)
                sums["BN", 1] += float((x.mean(0) - wanted).square().mean().detach())
            if place == 2:
                for key, layer in beside.items():
                    off = _mean_taken(layer, x) - wanted if step >= 32 else x.new_zeros(16)
                    if step < 32:
                        _mean_taken(layer, x)
                    sums[key] += float(off.square().mean())
            x = torch.relu(bn(x))
        nn.functional.cross_entropy(head(x), labels[rows]).backward()
        optimizer.step()
    return {key: value / (2 * SAMPLES // SIZE - 32) for key, value in sums.items()}


def _beside(linear: nn.Linear, k: int, order: int) -> norms.CBN:
    layer = norms.CBN(16, window=k, order=order, eps=0, affine=False).double()
    layer.attach(linear)
    return layer


@torch.no_grad()
def _mean_taken(layer: norms.CBN, x: Tensor) -> Tensor:
    """Read off inputs and outputs, y = (x - mu) / sigma, which mean a layer took."""
    y = layer(x)
    return x.mean(0) - y.mean(0) * x.std(0) / y.std(0)


@torch.no_grad()
def _reference(maps: list[nn.Linear], plain: list[nn.Module], data: Tensor) -> Tensor:
    """Return the mean over all samples of what the third BN meets."""
    x = data
    for linear, bn in zip(maps[:2], plain[:2], strict=True):
        x = linear(x)
        x = (x - x.mean(0)) / (x.var(0, correction=0) + bn.eps).sqrt() * bn.weight + bn.bias
        x = torch.relu(x)
    return maps[2](x).mean(0)


@check
def better_estimates() -> Mapping[str, float]:
    """Mean squared errors of the mean over BN's, k = 4, at a large and at a small rate."""
    found = {}
    for name, rate in {"large": 0.2, "small": 0.002}.items():
        errors = squared_errors(rate)
        for layer in ("naive", "CBN"):
            ratio = errors[layer, 4] / errors["BN", 1]
            found[f"{layer}_over_BN_at_a_{name}_rate"] = ratio
    found["CBN_over_naive_at_a_large_rate"] = (
        found["CBN_over_BN_at_a_large_rate"] / found["naive_over_BN_at_a_large_rate"]
    )
    return found


@check
def best_window() -> Mapping[str, float]:
    """The k of the least error at a large rate, naive and compensated."""
    errors = squared_errors(0.2)
    best = {n: min((2, 4, 8, 16), key=lambda k, n=n: errors[n, k]) for n in ("naive", "CBN")}
    return {
        "best_k_naive": best["naive"],
        "best_k_CBN": best["CBN"],
        "difference": best["CBN"] - best["naive"],
        "naive_16_over_CBN_16": errors["naive", 16] / errors["CBN", 16],
    }


@check
def window_cost() -> Mapping[str, float]:
    """Numbers that a 3x3 convolution of 64 channels makes CBN keep at k = 8, beside the formula."""
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    layer = norms.CBN(64, group=2)
    layer.attach(conv)
    for step in range(8):
        with norms.step(layer):
            layer(conv(draw(2, 64, 4, 4, seed=step).float()))
    kept = sum(b.numel() for n, b in layer.named_buffers() if n.startswith("window_"))
    k, weights = usual_length(2), conv.weight.numel()
    return {"kept": kept, "stored_as_in_the_paper": (k - 1) * (2 * 64 + weights + 2 * weights)}

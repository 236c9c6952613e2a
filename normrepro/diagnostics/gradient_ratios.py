"""How much a layer's statistics depend on the weights of earlier layers (CBN, appendix C)."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normrepro import norms
from normrepro.data.base import generator
from normrepro.diagnostics.base import AfterEpoch, Epoch, layers


class GradientRatios(AfterEpoch):
    """||d mu^l / d theta^r|| / ||d mu^l / d theta^l||, r = l - 1, l - 2, and so for nu (Figure 6).

    mu, nu: mean of x and of x^2, per channel, over the first group of images that layer l meets;
    theta^r: the weight of the convolution or linear map that feeds the r-th norm, the norms in the
    order in which they run; Frobenius norms; the mean over all layers l. The gradient runs through
    the norms between as they train. Norms without a map of their own are passed over, and so are
    maps that MABN centres.

    Args:
        probes: Random directions that a norm is estimated by (E |J' v|^2 = ||J||_F^2 for v of +-1);
            None takes every channel, which is exact.
    """

    def __init__(self, probes: int | None = 4) -> None:
        self.probes = probes

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Return `mu_ratio_1`, `mu_ratio_2`, `nu_ratio_1`, `nu_ratio_2`: the number is l - r."""
        found: dict[str, list[float]] = {}
        for x, _ in islice(epoch.train(), 1):
            met = _weights_and_inputs(epoch.model, x)
            for place in range(1, len(met)):
                chain = [weight for weight, _ in met[max(place - 2, 0) : place + 1]][::-1]
                for name, power in (("mu", 1), ("nu", 2)):
                    statistic = met[place][1].pow(power).mean(0)  # (C)
                    sizes = self._sizes(statistic, chain, place)
                    for back, size in enumerate(sizes[1:], start=1):
                        found.setdefault(f"{name}_ratio_{back}", []).append(size / sizes[0])
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _sizes(self, statistic: Tensor, weights: list[Tensor], place: int) -> list[float]:
        """Return the norms of the Jacobians of a statistic (C) with respect to some weights."""
        if self.probes is None:
            directions = torch.eye(len(statistic))
        else:
            draw = generator("probes", place)
            directions = torch.randint(2, (self.probes, len(statistic)), generator=draw) * 2.0 - 1
        squares = [0.0] * len(weights)
        for v in directions.to(statistic):
            parts = torch.autograd.grad(
                statistic, weights, v, retain_graph=True, materialize_grads=True
            )
            squares = [
                s + float(p.double().square().sum()) for s, p in zip(squares, parts, strict=True)
            ]
        return [s**0.5 for s in squares]


def _weights_and_inputs(model: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return, per norm with a map of its own, that map's weight and the norm's input (n, C)."""
    maps: dict[int, Tensor] = {}
    met: list[tuple[Tensor, Tensor]] = []

    def fed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.weight.is_leaf:  # and not made anew for each forward, as MABN's centred ones
            maps[id(output)] = module.weight
        kept.append(output)  # so that no other tensor takes its place, and its id

    def normed(layer: norms.Normalizer, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in maps:
            share = len(inputs[0]) // layer.replicas
            own = inputs[0][: min(layer.group or share, share)]
            met.append((maps[id(inputs[0])], own.transpose(0, 1).flatten(1).T))

    kept: list[Tensor] = []
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [m.register_forward_hook(fed) for m in model.modules() if isinstance(m, kinds)]
    handles += [m.register_forward_pre_hook(normed) for m in layers(model).values()]
    try:
        with norms.step(model) as s, torch.enable_grad():
            s.skip()
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return met

"""Batch statistics of one layer, of few images beside many (MABN, Figures 2 to 4)."""

from collections import defaultdict
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normrepro import norms
from normrepro.config import ConfigError
from normrepro.diagnostics.base import AfterEpoch, Epoch, layers


class BatchStatistics(AfterEpoch):
    """l2 norms over the channels of a layer's four batch statistics, for two sizes of a batch.

    X (B, C, *) is the layer's input, Y what it normalizes it to, G = dL/dY (MABN eq. 4, 5):
        mu = mean X,  var = mean (X - mu)^2,  Y = (X - mu) / sqrt(var + eps),
        g = mean G,  psi = mean Y G;
    of the modified structure (eq. 15, 16; appendix B.1): chi2 = mean X^2, Y = X / sqrt(chi2 + eps),
    psi = mean Y G, and `sma`, the mean over the last regular / small groups of chi2 and of psi.

    `small` takes the first images of device 0's share and `regular` more of the same ones, so that
    both are statistics of one pass; G is the gradient of the network as it trains. The paper plots
    every iteration; this looks at the first batches of each epoch by the weights at its end, which
    needs no memory of the training and shows the same scatter.

    Args:
        layer: Name of the normalizer.
        small: Images of a small batch.
        regular: Images of a regular one, at most a device's share.
        batches: How many to look at; `sma` is of the second and later ones.
        modified: Statistics of the modified structure instead of BN's.
    """

    def __init__(
        self,
        layer: str = "layer1.0.bn1",
        small: int = 2,
        regular: int = 32,
        batches: int = 8,
        modified: bool = False,
    ) -> None:
        if not 1 <= small <= regular or regular % small or batches < 2:
            raise ValueError(f"{small=} must divide {regular=}, and {batches=} be 2 or more")
        self.layer, self.small, self.regular = layer, small, regular
        self.batches, self.modified = batches, modified

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Return each norm's mean over the batches, as in `mu_small`, and the list `mu_small_each`.

        Raises:
            ConfigError: There is no such layer, or a device's share is less than `regular`.
        """
        each: dict[str, list[float]] = defaultdict(list)
        before: dict[str, Tensor] = {}
        for x, y in islice(epoch.train(), self.batches):
            inputs, gradients, eps = self._look(epoch, x, y)
            groups = self._statistics(inputs, gradients, self.small, eps)
            whole = self._statistics(inputs, gradients, self.regular, eps)
            for name, values in whole.items():
                each[f"{name}_regular"].append(float(values[0].norm()))
                each[f"{name}_small"].append(float(groups[name][0].norm()))
                if self.modified and before:
                    window = torch.cat([before[name][1:], groups[name][:1]])
                    each[f"{name}_sma"].append(float(window.mean(0).norm()))
            before = groups
        return _from_the_first(dict(each), epoch)

    def _look(self, epoch: Epoch, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return a layer's inputs and dL/dY, (regular, C, S) both, and its eps."""
        layer = layers(epoch.model).get(self.layer)
        if layer is None:
            known = ", ".join(list(layers(epoch.model))[:3])
            raise ConfigError(
                f"task.diagnostics: the model has no norm {self.layer}, but {known}, ..."
            )
        share = len(x) // layer.replicas
        if share < self.regular:
            raise ConfigError(
                f"task.diagnostics: regular={self.regular} images, but a device has {share}: "
                "raise batch.total or lower batch.devices"
            )
        seen: dict[str, Tensor] = {}

        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen.update(x=inputs[0].detach().clone(), y=output)
            return output.clone()  # what follows may overwrite it

        handle = layer.register_forward_hook(look)
        try:
            with norms.step(epoch.model, scale=epoch.ranks.world) as s:
                s.skip()
                (g,) = torch.autograd.grad(epoch.loss(epoch.model, x, y), seen["y"])
        finally:
            handle.remove()
        g = g.double() / epoch.ranks.world  # each process takes the mean over its own images
        if layer.weight is not None:
            g = g * layer.weight.detach().double().view(-1, *[1] * (g.dim() - 2))
        first = slice(self.regular)
        return seen["x"][first].double().flatten(2), g[first].flatten(2), layer.eps

    def _statistics(self, x: Tensor, g: Tensor, images: int, eps: float) -> dict[str, Tensor]:
        """Return statistics (M, C) of the M groups of so many images."""
        x, g = (t.reshape(-1, images, *x.shape[1:]) for t in (x, g))  # (M, B, C, *)
        over = [1, *range(3, x.dim())]
        if self.modified:
            chi2 = x.square().mean(over, keepdim=True)
            y = x / (chi2 + eps).sqrt()
            return {"chi2": chi2.flatten(1), "psi": (y * g).mean(over)}
        mean = x.mean(over, keepdim=True)
        var = (x - mean).square().mean(over, keepdim=True)
        y = (x - mean) / (var + eps).sqrt()
        found = {"mu": mean, "var": var}
        return {k: v.flatten(1) for k, v in found.items()} | {
            "g": g.mean(over),
            "psi": (y * g).mean(over),
        }


def _from_the_first(each: dict[str, list[float]], epoch: Epoch) -> dict[str, Any]:
    """Give every process the first one's lists, and their means."""
    found: dict[str, Any] = {}
    device = next(epoch.model.parameters()).device
    for name, values in each.items():
        own = torch.tensor(values, dtype=torch.float64, device=device)
        shared = epoch.ranks.sum(own if epoch.ranks.first else torch.zeros_like(own))
        found[name], found[f"{name}_each"] = float(shared.mean()), shared.tolist()
    return found

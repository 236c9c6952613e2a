"""References for cross-iteration batch norm: the paper's and the released one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Oracle
from .conv import Conv
from .layout import average, layout, mean, variance


@dataclass
class Slice:
    """One group's statistics (C, 1) and all that their compensation may need."""

    mu: Tensor
    nu: Tensor
    dmu: Tensor  # (C, D): d mu_o / d w_o, the mean patch (eq. 15)
    dnu: Tensor  # (C, D): d nu_o / d w_o = 2 mean(x_o p)
    weight: Tensor
    bias: Tensor | None
    patches: Tensor


class CBN(Oracle):
    """Cross-iteration batch norm (eqs. 7 to 12), the convolution's output normalized by k groups.

    Earlier groups enter as constants, moved to the present weights by a Taylor expansion of `order`
    0, 1 or 2 (2 is exact). Nothing is recorded during burn-in; afterwards the window grows to k.
    Running statistics come from the current batch, the variance unbiased.
    """

    def __init__(
        self,
        *args: Any,
        conv: Conv,
        window: int,
        order: int = 1,
        burn_in: int = 0,
        momentum: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.conv, self.window, self.order = conv, window, order
        self.burn_in, self.momentum = burn_in, momentum
        self.steps = 0
        self.running_mean = self.per_replica(0.0)
        self.running_var = self.per_replica(1.0)
        self.old: list[list[Slice]] = [[] for _ in range(self.replicas)]
        self.new: list[list[Slice]] = [[] for _ in range(self.replicas)]

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve inputs (N, C_in, *) and normalize."""
        kernel = tuple(weight.shape[2:])
        self.inputs, self.weight, self.bias = inputs, weight, bias
        self.new = [[] for _ in range(self.replicas)]
        sets = layout(len(inputs), self.group, self.replicas)
        self.patches = [self.conv.patches(inputs[rows], kernel) for rows, _ in sets]
        size = self.conv.out_size(inputs, kernel)
        x = inputs.new_empty(len(inputs), self.channels, *size)
        for (rows, _), patches in zip(sets, self.patches, strict=True):
            values = self.conv.apply(patches, weight, bias)
            x[rows] = values.view(self.channels, -1, *size).transpose(0, 1)
        return super().forward(x)

    def observed(self, x: Tensor, patches: Tensor) -> Slice:
        """Statistics of one group and their derivatives."""
        groups = [self.conv.group_of(self.weight, o) for o in range(self.channels)]
        dmu = torch.stack([mean(patches[q]).flatten() for q in groups])
        dnu = torch.stack([2 * mean(x[o] * patches[q]).flatten() for o, q in enumerate(groups)])
        return Slice(mean(x), mean(x**2), dmu, dnu, self.weight, self.bias, patches)

    def moved(self, past: Slice) -> tuple[Tensor, Tensor]:
        """Estimate a past group's mu and nu under the present weights (eqs. 7, 8)."""
        if self.order == 0:
            return past.mu, past.nu
        if self.order == 2:  # both are then exact: the old inputs through the new filter
            x = self.conv.apply(past.patches, self.weight, self.bias)
            return mean(x), mean(x**2)
        step = (self.weight - past.weight).flatten(1)
        mu = past.mu + (past.dmu * step).sum(1, keepdim=True)
        nu = past.nu + (past.dnu * step).sum(1, keepdim=True)
        if self.bias is None or past.bias is None:
            return mu, nu
        drift = (self.bias - past.bias)[:, None]
        return mu + drift, nu + 2 * past.mu * drift

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        now = self.observed(x, self.patches[len(self.kept)])
        past = list(reversed(self.old[device] + self.new[device]))[: self.window - 1]
        if self.steps < self.burn_in:
            past = []
        self.new[device].append(now)
        pairs = [(now.mu, now.nu), *(self.moved(entry) for entry in past)]
        center, var, weight = self.joined([m for m, _ in pairs], [n for _, n in pairs])
        root, divisor = self.divisor(var)
        count = x.shape[1]
        kept = {"x": x, "center": center, "root": root, "divisor": divisor, "share": weight}
        running = {"mean": mean(x), "var": variance(x) * count / (count - 1)}
        return {"xhat": (x - center) / divisor, **kept, **running}

    def joined(self, mu: list[Tensor], nu: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance (eqs. 9 to 11) and the current group's weight in them."""
        center = average(mu)
        square = average([torch.maximum(n, m**2) for m, n in zip(mu, nu, strict=True)])
        return center, square - center**2, torch.ones_like(center) / len(mu)

    def divisor(self, var: Tensor) -> tuple[Tensor, Tensor]:
        """The root whose argument is differentiated, and what x - mean is divided by (eq. 12)."""
        root = (var + self.eps).sqrt()
        return root, root

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        """Through the current group only, and not through the compensation."""
        x, center, divisor = kept["x"], kept["center"], kept["divisor"]
        g_divisor = -(g * (x - center)).sum(1, keepdim=True) / divisor**2
        g_var = g_divisor / (2 * kept["root"])
        g_center = -g.sum(1, keepdim=True) / divisor - 2 * center * g_var
        return g / divisor + kept["share"] * (g_center + 2 * x * g_var) / x.shape[1]

    def commit(self) -> None:
        a = self.momentum
        for r in range(self.replicas):
            new_mean, new_var = (average(self.of_device(name, r)) for name in ("mean", "var"))
            self.running_mean[r] = (1 - a) * self.running_mean[r] + a * new_mean
            self.running_var[r] = (1 - a) * self.running_var[r] + a * new_var
            if self.steps >= self.burn_in:
                entries = self.old[r] + self.new[r]
                self.old[r] = entries[max(0, len(entries) - (self.window - 1)) :]
        self.new = [[] for _ in range(self.replicas)]
        self.steps += 1

    def population(self, device: int) -> tuple[Tensor, Tensor]:
        return self.running_mean[device], self.divisor(self.running_var[device])[1]

    def conv_backward(self, gx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the convolution's input, weight and bias from gx = dL/d(conv output)."""
        gw = torch.zeros_like(self.weight)
        for kept, patches in zip(self.kept, self.patches, strict=True):
            rows = gx[kept["rows"]].transpose(0, 1).flatten(1)
            gw = gw + self.conv.weight_gradient(patches, self.weight, rows)
        gb = gx.transpose(0, 1).flatten(1).sum(1)
        return self.conv.input_gradient(self.inputs, self.weight, gx), gw, gb


class OfficialCBN(CBN):
    """The released layer: eps outside the root, invalid groups dropped per channel, no bias drift.

    During burn-in, and for k = 1, it normalizes by the unbiased variance.
    """

    def moved(self, past: Slice) -> tuple[Tensor, Tensor]:
        mu, nu = past.mu, past.nu
        if self.order == 0:
            return mu, nu
        step = (self.weight - past.weight).flatten(1)
        return mu + (past.dmu * step).sum(1, True), nu + (past.dnu * step).sum(1, True)

    def plain(self) -> bool:
        """Whether this step is ordinary batch norm."""
        return self.window == 1 or self.steps < self.burn_in

    def joined(self, mu: list[Tensor], nu: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        if self.plain():
            count = self.patches[0].shape[-1]
            return mu[0], (nu[0] - mu[0] ** 2) * count / (count - 1), torch.ones_like(mu[0])
        valid = [(n >= m**2).double() for m, n in zip(mu, nu, strict=True)]
        count = sum(valid)
        center = sum(v * m for v, m in zip(valid, mu, strict=True)) / count
        square = sum(v * n for v, n in zip(valid, nu, strict=True)) / count
        return center, square - center**2, valid[0] / count

    def divisor(self, var: Tensor) -> tuple[Tensor, Tensor]:
        return var.sqrt(), var.sqrt() + self.eps

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        if not self.plain():
            return super().input_gradient(g, kept)
        x, center, divisor = kept["x"], kept["center"], kept["divisor"]
        g_divisor = -(g * (x - center)).sum(1, keepdim=True) / divisor**2
        spread = g_divisor / kept["root"] * (x - center) / (x.shape[1] - 1)
        return (g - mean(g)) / divisor + spread

"""Reference for MABN's ablations (Tables 2, 4): a structure with moving statistics in FP and BP."""

from typing import Any

import torch
from torch import Tensor

from .base import Oracle
from .layout import average, mean, variance


class MovingNorm(Oracle):
    """The vanilla or modified structure with statistics from the batch, an SMA or an EMA.

    Forward statistics are mu and sigma^2 (vanilla), or chi^2 alone (modified).
    Y = (X - mu)/sigma, Yhat = r Y + d, where `forward_by` is
        batch: the group's own, r = 1, d = 0;
        sma: the mean of the last m groups, this one included, in place of the group's own;
        ema: the group's own in Y, then r and d towards the EMA before this step (eqs. 14, 19).
    Backward statistics are g = mean(dL/dY) (vanilla only) and Psi = mean(Y dL/dY):
    dL/dX = (dL/dY - g - Y Psi)/sigma, where `backward_by` takes the group's own, the SMA (eq. 13),
    or the EMA (eq. 12) from zero, this step's mean over groups included.
    """

    def __init__(
        self,
        *args: Any,
        vanilla: bool,
        forward_by: str,
        backward_by: str,
        memory: int = 16,
        momentum: float = 0.02,
        r_max: float = 5.0,
        d_max: float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.vanilla, self.forward_by, self.backward_by = vanilla, forward_by, backward_by
        self.memory, self.momentum, self.r_max, self.d_max = memory, momentum, r_max, d_max
        initial = {"mean": 0.0, "spread": 1.0, "g": 0.0, "psi": 0.0}
        self.ema = {name: self.per_replica(value) for name, value in initial.items()}
        self.past: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in range(self.replicas)] for name in initial
        }

    def sma(self, name: str, own: Tensor, device: int, new: list[Tensor]) -> Tensor:
        """Mean of the last m values: committed, of earlier groups of this step, the group's own."""
        values = [*self.past[name][device], *new, own.reshape(-1)]
        return average(values[-self.memory :])[:, None]

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        center = mean(x) if self.vanilla else torch.zeros_like(mean(x))
        spread = variance(x) if self.vanilla else mean(x**2)
        own = {"mean": center, "spread": spread}
        if self.forward_by == "sma":
            center, spread = (
                self.sma(name, value, device, self.of_device(name, device))
                for name, value in own.items()
            )
        used = {"used_mean": center, "used_spread": spread}
        sigma = (spread + self.eps).sqrt()
        y = (x - center) / sigma
        r, d = torch.ones_like(sigma), torch.zeros_like(sigma)
        if self.forward_by == "ema":
            scale = (self.ema["spread"][device][:, None] + self.eps).sqrt()
            r = (sigma / scale).clamp(1 / self.r_max, self.r_max)
            if self.vanilla:
                gap = (center - self.ema["mean"][device][:, None]) / scale
                d = gap.clamp(-self.d_max, self.d_max)
        return {"xhat": r * y + d, "y": y, "r": r, "sigma": sigma, **own, **used}

    def backward(self, gz: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Note every group's own g and Psi first, since the EMA moves by their mean."""
        for kept in self.kept:
            block = gz[kept["rows"]].transpose(0, 1).flatten(1)
            gy = kept["r"] * self.gamma[:, None] * block / scale
            kept["g"], kept["psi"] = mean(gy), mean(kept["y"] * gy)
            if not self.vanilla:
                kept["g"] = torch.zeros_like(kept["g"])
        return super().backward(gz, scale)

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        gy = kept["r"] * g
        gbar, psibar = (self.scale * self.backward_statistic(n, kept) for n in ("g", "psi"))
        return (gy - gbar - kept["y"] * psibar) / kept["sigma"]

    def backward_statistic(self, name: str, kept: dict[str, Any]) -> Tensor:
        """g or Psi as `backward_by` says, (C, 1)."""
        device = kept["devices"][0]
        if self.backward_by == "batch":
            return kept[name]
        if self.backward_by == "ema":
            return self.moved(name, device)[:, None]
        start = kept["rows"].start
        mine = [k for k in self.kept if device in k["devices"] and k["rows"].start < start]
        return self.sma(name, kept[name], device, [k[name].reshape(-1) for k in mine])

    def moved(self, name: str, device: int) -> Tensor:
        """The EMA after this step; forward statistics enter it as the forward used them."""
        source = f"used_{name}" if name in ("mean", "spread") else name
        new = average(self.of_device(source, device))
        return (1 - self.momentum) * self.ema[name][device] + self.momentum * new

    def commit(self) -> None:
        for name in self.ema:
            for r in range(self.replicas):
                self.ema[name][r] = self.moved(name, r)
                values = self.past[name][r] + self.of_device(name, r)
                self.past[name][r] = values[-self.memory :]

    def population(self, device: int) -> tuple[Tensor, Tensor]:
        return self.ema["mean"][device], (self.ema["spread"][device] + self.eps).sqrt()

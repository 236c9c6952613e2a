"""References for batch norm (grouped, synchronized, frozen) and batch renormalization."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import Oracle
from .layout import average, mean, variance

Limits = Callable[[int], tuple[float, float]]


class BatchNorm(Oracle):
    """Batch norm over groups; a group of several whole devices is SyncBN.

    xhat = (x - mu_B)/sigma_B, dL/dx = (g - mean(g) - xhat mean(g xhat))/sigma_B; one EMA update
    per step with the mean over the device's groups, the variance unbiased.
    """

    def __init__(self, *args: Any, momentum: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.momentum = momentum
        self.steps = 0
        self.running_mean = self.per_replica(0.0)
        self.running_var = self.per_replica(1.0)

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        sigma = (variance(x) + self.eps).sqrt()
        count = x.shape[1]
        unbiased = variance(x) * count / (count - 1)
        return {"xhat": (x - mean(x)) / sigma, "sigma": sigma, "mean": mean(x), "var": unbiased}

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        xhat = kept["xhat"]
        return (g - mean(g) - xhat * mean(g * xhat)) / kept["sigma"]

    def commit(self) -> None:
        a = self.momentum
        for r in range(self.replicas):
            new_mean = average(self.of_device("mean", r))
            new_var = average(self.of_device("var", r))
            self.running_mean[r] = (1 - a) * self.running_mean[r] + a * new_mean
            self.running_var[r] = (1 - a) * self.running_var[r] + a * new_var
        self.steps += 1

    def population(self, device: int) -> tuple[Tensor, Tensor]:
        return self.running_mean[device], (self.running_var[device] + self.eps).sqrt()

    def buffers(self) -> dict[str, Tensor]:
        return {
            "running_mean": self.packed(self.running_mean),
            "running_var": self.packed(self.running_var),
            "num_batches_tracked": torch.tensor(self.steps),
        }


class FrozenBatchNorm(BatchNorm):
    """Batch norm whose statistics are constants in training too."""

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        center, sigma = self.population(device)
        return {"xhat": (x - center[:, None]) / sigma[:, None], "sigma": sigma[:, None]}

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        return g / kept["sigma"]

    def commit(self) -> None:
        pass


def constant_limits(r_max: float, d_max: float) -> Limits:
    """The same limits at every step."""
    return lambda t: (r_max, d_max)


def ramp(t: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end`, linear between."""
    return min(max((t - start) / (end - start), 0.0), 1.0)


def ramped_limits(
    r_max: float = 3.0,
    d_max: float = 5.0,
    points: tuple[float, float, float] = (5e3, 40e3, 25e3),
    run: float = 1.0,
) -> Limits:
    """Ioffe's ramps: r from 1 in steps 5k to 40k, d from 0 in steps 5k to 25k.

    Args:
        r_max: Limit of r after its ramp.
        d_max: Limit of d after its ramp.
        points: Where both ramps start, where r's ends, where d's ends.
        run: Length of the run if the points are fractions of it.
    """
    start, r_end, d_end = points

    def limits(t: int) -> tuple[float, float]:
        r_ramp, d_ramp = ramp(t / run, start, r_end), ramp(t / run, start, d_end)
        return 1 + (r_max - 1) * r_ramp, d_max * d_ramp

    return limits


class BatchRenorm(Oracle):
    """Batch renormalization: xhat = r (x - mu_B)/sigma_B + d, r and d constant in backward.

    Args:
        limits: Step t (number of steps completed before this one) -> (r_max, d_max).
        ema: What the EMA averages: "std" (sigma_B, eps inside) or "var" (the biased variance).
    """

    def __init__(
        self,
        *args: Any,
        momentum: float = 0.1,
        limits: Limits,
        ema: str = "std",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.momentum, self.limits, self.ema = momentum, limits, ema
        self.steps = 0
        self.running_mean = self.per_replica(0.0)
        self.running_spread = self.per_replica(1.0)

    def population(self, device: int) -> tuple[Tensor, Tensor]:
        spread = self.running_spread[device]
        divisor = spread if self.ema == "std" else (spread + self.eps).sqrt()
        return self.running_mean[device], divisor

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        center, scale = (state[:, None] for state in self.population(device))
        r_max, d_max = self.limits(self.steps)
        sigma = (variance(x) + self.eps).sqrt()
        r = (sigma / scale).clamp(1 / r_max, r_max)
        d = ((mean(x) - center) / scale).clamp(-d_max, d_max)
        z = (x - mean(x)) / sigma
        spread = sigma if self.ema == "std" else variance(x)
        xhat = z * r + d
        return {"xhat": xhat, "z": z, "r": r, "sigma": sigma, "mean": mean(x), "spread": spread}

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        g, z = kept["r"] * g, kept["z"]
        return (g - mean(g) - z * mean(g * z)) / kept["sigma"]

    def commit(self) -> None:
        a = self.momentum
        for r in range(self.replicas):
            new_mean = average(self.of_device("mean", r))
            new_spread = average(self.of_device("spread", r))
            self.running_mean[r] = (1 - a) * self.running_mean[r] + a * new_mean
            self.running_spread[r] = (1 - a) * self.running_spread[r] + a * new_spread
        self.steps += 1

    def buffers(self) -> dict[str, Tensor]:
        return {
            "running_mean": self.packed(self.running_mean),
            f"running_{self.ema}": self.packed(self.running_spread),
            "num_batches_tracked": torch.tensor(self.steps),
        }

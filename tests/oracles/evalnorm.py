"""Reference for EvalNorm: batch norm in training, sample-corrected statistics in evaluation."""

from typing import Any

import torch
from torch import Tensor

from .batch import BatchNorm
from .layout import images_like, mean, per_channel, variance


class EvalNorm(BatchNorm):
    """EvalNorm (eqs. 5, 6, 9) with alpha and beta learned online.

    mu^ = a mu_i + (1-a) mu_E,  var^ = b var_i + (1-b) var_E + b (1-b) (mu_i - mu_E)^2 for image i.
    After each step's EMA update: one plain gradient step on the mean of
    |stop[(x - mu_B)/sigma_B] - (x - mu^)/sigma^| over a device's images, the gradients averaged
    over devices, the result clipped to [0, 1].

    Args:
        rate: Learning rate of a and b.
        unbiased: Whether var_E averages the unbiased variance.
    """

    def __init__(self, *args: Any, rate: float = 0.1, unbiased: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rate, self.unbiased = rate, unbiased
        self.a = self.b = torch.tensor(1.0 / self.group**2, dtype=torch.float64)

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        kept = super().normalize(x, device)
        if not self.unbiased:
            kept["var"] = variance(x)
        return {**kept, "x": x}

    def sample(self, x: Tensor, device: int) -> dict[str, Tensor]:
        """What one image (C, S) is normalized by, each (C, 1)."""
        mu_e, var_e = self.running_mean[device][:, None], self.running_var[device][:, None]
        gap, a, b = mean(x) - mu_e, self.a, self.b
        center = a * mean(x) + (1 - a) * mu_e
        var = b * variance(x) + (1 - b) * var_e + b * (1 - b) * gap**2
        sigma = (var + self.eps).sqrt()
        slope = variance(x) - var_e + (1 - 2 * b) * gap**2  # d var^ / d b
        return {"xhat": (x - center) / sigma, "sigma": sigma, "gap": gap, "slope": slope}

    def commit(self) -> None:
        super().commit()
        totals = [self.device_gradients(r) for r in range(self.replicas)]
        grad_a = sum(t[0] for t in totals) / self.replicas
        grad_b = sum(t[1] for t in totals) / self.replicas
        self.a = (self.a - self.rate * grad_a).clamp(0, 1)
        self.b = (self.b - self.rate * grad_b).clamp(0, 1)

    def device_gradients(self, device: int) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by a and b of the device's loss, and the loss."""
        grad_a = grad_b = loss = torch.tensor(0.0, dtype=torch.float64)
        elements = 0
        for kept in (k for k in self.kept if device in k["devices"]):
            rows: slice = kept["rows"]
            images = rows.stop - rows.start
            values = kept["x"].view(self.channels, images, -1)
            targets = kept["xhat"].view(self.channels, images, -1)
            for i in range(images):
                own = self.sample(values[:, i], device)
                error = own["xhat"] - targets[:, i]
                s = error.sign()
                grad_a = grad_a - (s * own["gap"] / own["sigma"]).sum()
                grad_b = grad_b - (s * own["xhat"] / (2 * own["sigma"] ** 2) * own["slope"]).sum()
                loss = loss + error.abs().sum()
                elements += error.numel()
        return grad_a / elements, grad_b / elements, loss / elements

    def evaluate(self, x: Tensor) -> Tensor:
        """Each image by its own corrected statistics, whatever else is in the batch."""
        self.xhat, self.inputs = torch.empty_like(x), x
        for i in range(len(x)):
            own = self.sample(per_channel(x[i : i + 1]), 0)
            self.xhat[i : i + 1] = images_like(own["xhat"], x[i : i + 1])
        return self.affine(self.xhat)

    def evaluate_backward(self, gz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of `evaluate`: an image's own statistics depend on it."""
        gx = torch.empty_like(gz)
        for i in range(len(gz)):
            x, g = (per_channel(v[i : i + 1]) for v in (self.inputs, gz))
            g, own = self.gamma[:, None] * g, self.sample(x, 0)
            g_var = -mean(g * own["xhat"]) / (2 * own["sigma"] ** 2)
            spread = 2 * self.b * (x - mean(x)) + 2 * self.b * (1 - self.b) * own["gap"]
            grad = (g - self.a * mean(g)) / own["sigma"] + g_var * spread
            gx[i : i + 1] = images_like(grad, gz[i : i + 1])
        return gx, self.ggamma(gz, self.xhat), per_channel(gz).sum(dim=1)

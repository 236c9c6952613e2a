"""References for the norms that look at one image at a time."""

from typing import Any

import torch
from torch import Tensor

from .base import Oracle


class GroupNorm(Oracle):
    """Group norm: statistics over a group of channels and all positions of one image.

    The variance is biased, eps inside the root. One group is layer norm, as many groups as channels
    is instance norm; the same in training and evaluation.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)
        self.groups = groups

    def blocks(self, x: Tensor) -> list[tuple[int, slice]]:
        width = self.channels // self.groups
        return [
            (n, slice(k * width, (k + 1) * width))
            for n in range(len(x))
            for k in range(self.groups)
        ]

    def forward(self, x: Tensor) -> Tensor:
        self.xhat, self.sigma = torch.empty_like(x), torch.empty_like(x)
        for n, channels in self.blocks(x):
            values = x[n, channels]
            mu = values.sum() / values.numel()
            sigma = (((values - mu) ** 2).sum() / values.numel() + self.eps).sqrt()
            self.xhat[n, channels], self.sigma[n, channels] = (values - mu) / sigma, sigma
        return self.affine(self.xhat)

    def backward(self, gz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gx = torch.empty_like(gz)
        for n, channels in self.blocks(gz):
            shape = (-1,) + (1,) * (gz.dim() - 2)
            g, xhat = self.gamma[channels].view(shape) * gz[n, channels], self.xhat[n, channels]
            own = g.sum() / g.numel() + xhat * (g * xhat).sum() / g.numel()
            gx[n, channels] = (g - own) / self.sigma[n, channels]
        gbeta = torch.stack([gz[:, c].sum() for c in range(self.channels)])
        return gx, self.ggamma(gz, self.xhat), gbeta

    def commit(self) -> None:
        pass

    def evaluate(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def evaluate_backward(self, gz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.backward(gz)

    def buffers(self) -> dict[str, Any]:
        return {}


class LayerNorm(GroupNorm):
    """One group over all channels, affine per channel."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, groups=1, eps=eps)


class InstanceNorm(GroupNorm):
    """Every channel of every image for itself."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, groups=channels, eps=eps)

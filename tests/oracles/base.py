"""What the references have in common: the loop over sets, the affine part, the replicas' state.

A reference is slow on purpose. `forward` and `backward` visit one set of statistics after the
other and are written from the equations, without autograd; `commit` ends an optimizer step and is
the only one to move state.
"""

from typing import Any

import torch
from torch import Tensor

from .layout import images_like, layout, per_channel


class Oracle:
    """One normalization layer in float64.

    Subclasses write `normalize` and `input_gradient` for one set, `commit` and `population`.
    """

    def __init__(
        self, channels: int, group: int | None = None, replicas: int = 1, eps: float = 1e-5
    ) -> None:
        self.channels, self.group, self.replicas, self.eps = channels, group, replicas, eps
        self.gamma = torch.ones(channels, dtype=torch.float64)
        self.beta = torch.zeros(channels, dtype=torch.float64)
        self.kept: list[dict[str, Any]] = []  # one record per set of the latest forward

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        """Normalize one set (C, m); the record returned has `xhat` and what backward needs."""
        raise NotImplementedError

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        """dL/dx of one set from g = dL/dxhat, both (C, m)."""
        raise NotImplementedError

    def commit(self) -> None:
        """End an optimizer step."""
        raise NotImplementedError

    def population(self, device: int) -> tuple[Tensor, Tensor]:
        """Mean and divisor of evaluation, each (C,)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """y = gamma xhat + beta, for x (N, C, *)."""
        self.kept = []
        self.xhat = torch.empty_like(x)
        for rows, devices in layout(len(x), self.group, self.replicas):
            kept = self.normalize(per_channel(x[rows]), devices[0])
            self.kept.append({**kept, "rows": rows, "devices": devices})
            self.xhat[rows] = images_like(kept["xhat"], x[rows])
        return self.affine(self.xhat)

    def backward(self, gz: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return dL/dx, dL/dgamma, dL/dbeta from gz = dL/dy; L is `scale` times the objective."""
        self.scale = scale
        gx = torch.empty_like(gz)
        for kept in self.kept:
            block = gz[kept["rows"]]
            g = self.gamma[:, None] * per_channel(block)
            gx[kept["rows"]] = images_like(self.input_gradient(g, kept), block)
        return gx, self.ggamma(gz, self.xhat), per_channel(gz).sum(dim=1)

    def ggamma(self, gz: Tensor, xhat: Tensor) -> Tensor:
        """Sum of gz * xhat over everything but channels."""
        return (per_channel(gz) * per_channel(xhat)).sum(dim=1)

    def affine(self, xhat: Tensor) -> Tensor:
        """Gamma xhat + beta."""
        rows = self.gamma[:, None] * per_channel(xhat) + self.beta[:, None]
        return images_like(rows, xhat)

    def evaluate(self, x: Tensor) -> Tensor:
        """Evaluation uses the first replica's statistics for every image."""
        mean, divisor = self.population(0)
        self.xhat = images_like((per_channel(x) - mean[:, None]) / divisor[:, None], x)
        return self.affine(self.xhat)

    def evaluate_backward(self, gz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of `evaluate`: its statistics are constants."""
        divisor = self.population(0)[1][:, None]
        gx = self.gamma[:, None] * per_channel(gz) / divisor
        return images_like(gx, gz), self.ggamma(gz, self.xhat), per_channel(gz).sum(dim=1)

    def of_device(self, name: str, device: int) -> list[Tensor]:
        """The values that this device's sets recorded under `name`, in time order, each (C,)."""
        return [kept[name].reshape(-1) for kept in self.kept if device in kept["devices"]]

    def per_replica(self, value: float) -> list[Tensor]:
        """Fresh state: one (C,) tensor per replica."""
        return [torch.full((self.channels,), value).double() for _ in range(self.replicas)]

    def packed(self, state: list[Tensor]) -> Tensor:
        """State as the layers hold it: (C,), or (R, C) with several replicas."""
        return state[0].clone() if self.replicas == 1 else torch.stack(state)

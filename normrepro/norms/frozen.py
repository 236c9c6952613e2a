"""Batch normalization by statistics that stay: detection's usual backbone, CBN's "fixed BN"."""

import torch
from torch import Tensor

from normrepro.norms.batch import BatchNorm


class FrozenBatchNorm(BatchNorm):
    """Batch normalization whose running statistics are constants, in training too.

        y = gamma (x - running_mean) / sqrt(running_var + eps) + beta

    Shapes: (N, C, *) -> the same; any N, an empty batch too. State: BatchNorm's buffers, which
    nothing moves, so a BatchNorm's state_dict loads. Training and evaluation are the same (with
    several replicas each trains by its own statistics), the gradient of x is gamma / sigma times
    that of y, and the layer folds. CBN's released code trains gamma and beta (only the statistics
    are fixed); detection libraries commonly freeze them as well (`train_affine=False`), some with
    eps = 0.

    Args:
        channels: C.
        group: Accepted for one signature with the batch normalizers; without effect.
        replicas: Devices of the protocol on this process.
        eps: Added to the variance.
        affine: Have gamma and beta.
        train_affine: Let gamma and beta have gradients.
    """

    across_batch = False

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        train_affine: bool = True,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        self.train_affine = train_affine

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *).

        Raises:
            ValueError: Wrong rank or channels, or a training batch that the replicas do not divide.
        """
        self.check(x)
        if not self.training or self.replicas == 1:
            return self.infer(x)
        if len(x) % self.replicas:
            raise ValueError(
                f"{len(x)} images do not divide over {self.replicas} replicas; "
                "change batch.total or batch.devices"
            )
        inv = (self.running_var + self.eps).rsqrt()
        scale, shift = self._affine(inv, -self.running_mean * inv)
        shape = (self.replicas, 1, -1) + (1,) * (x.dim() - 2)
        v = x.to(scale.dtype).unflatten(0, (self.replicas, -1))
        return torch.addcmul(shift.view(shape), v, scale.view(shape)).flatten(0, 1).to(x.dtype)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), both (C)."""
        mean, inv = self.inference_stats()
        return self._affine(inv, -mean * inv)

    def _affine(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Apply gamma and beta to the normalization scale x + shift."""
        if self.weight is None:
            return scale, shift
        weight, bias = self.weight, self.bias
        if not self.train_affine:
            weight, bias = weight.detach(), bias.detach()
        return weight * scale, weight * shift + bias

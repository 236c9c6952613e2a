"""Normalizers that never look across the batch: GN (Wu & He 2018), LN and IN."""

import math

import torch
from torch import Tensor

from normrepro.norms.arguments import integer
from normrepro.norms.base import Normalizer


class GroupNorm(Normalizer):
    """Group normalization: statistics over (C / groups, *) of one image.

        y = gamma (x - mu) / sqrt(var + eps) + beta, biased variance, gamma and beta per channel.
    The same in training and evaluation; no state.

    Args:
        channels: C.
        group: Accepted for one signature with the batch normalizers; without effect.
        replicas: Likewise.
        eps: Added to the variance.
        affine: Learn gamma and beta.
        groups: Channel groups; more than C means one channel each, as in XBNBlock's released code.
        indivisible: Where `groups` does not divide C: "error", or "divisor" for as many groups as
            divide both (144 channels and 32 groups: 16). No paper says what it did.

    Raises:
        ValueError: `groups` does not divide the channels, or `indivisible` is unknown.
    """

    across_batch = False
    linear = False

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        groups: int = 32,
        indivisible: str = "error",
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        if indivisible not in ("error", "divisor"):
            raise ValueError(f"{indivisible=} is none of error, divisor (norm.layer.indivisible)")
        integer(groups=groups)
        self.groups = min(groups, channels)
        if channels % self.groups and indivisible == "divisor":
            self.groups = math.gcd(groups, channels)
        if channels % self.groups:
            raise ValueError(
                f"groups={groups} does not divide {channels} channels (norm.layer.groups, or "
                "norm.layer.indivisible=divisor)"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *), in training and evaluation alike."""
        self.check(x)
        if x.numel() == 0:
            return x.clone()
        weight, bias = self.weight, self.bias
        if weight is not None and x.dtype == torch.float64:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        # Not torch.nn.functional's, which refuses a single value where there is one image only.
        return torch.group_norm(x, self.groups, weight, bias, self.eps)


class LayerNorm(GroupNorm):
    """Layer normalization as these papers use it: GN(1), with gamma and beta per channel."""

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine, groups=1)


class InstanceNorm(GroupNorm):
    """Instance normalization: one channel per group; affine unless told otherwise."""

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine, groups=channels)

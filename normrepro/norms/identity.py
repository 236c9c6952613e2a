"""No normalization: what is left of a layer when its norm is taken out."""

import torch
from torch import Tensor

from normrepro.norms.base import Normalizer


class Identity(Normalizer):
    """Leave x as it is, but for gamma and beta: y = gamma x + beta.

    Args:
        channels: C.
        group: Accepted for one signature with the other layers; without effect.
        replicas: Likewise.
        eps: Likewise.
        affine: Learn gamma and beta; without them y = x.
    """

    across_batch = False

    def forward(self, x: Tensor) -> Tensor:
        """Return gamma x + beta, in training and evaluation alike."""
        if x.dim() < 2 or x.shape[1] != self.channels:
            raise ValueError(f"expected (N, {self.channels}, *), got {tuple(x.shape)}")
        if self.weight is None:
            return x.clone()  # a layer's output is no view of its input: in-place ReLUs follow
        return self.infer(x)

    def inference_stats(self) -> tuple[None, Tensor]:
        """Return no mean, and ones."""
        like = torch.empty(0) if self.weight is None else self.weight
        return None, like.new_ones(self.channels)

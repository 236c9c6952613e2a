"""Group whitening (Huang et al., CVPR 2021), one of XBNBlock's batch-free norms."""

import torch
from torch import Tensor

from normrepro.norms.arguments import integer
from normrepro.norms.base import Normalizer
from normrepro.norms.layout import compute_dtype, dense

VARIANTS = ("paper", "official")


class GroupWhitening(Normalizer):
    """Whitening of each image across groups of channels, by Newton's iteration.

    x (N, C, *) of one image is read as X (G, m), m = C / G times the number of positions:
        Xc = X - row means,  Sigma = Xc Xc^T / m + eps I  (G, G)
        S = Sigma / tr(Sigma),  P_0 = I,  P_{k+1} = (3 P_k - P_k^3 S) / 2
        Y = P_T Xc / sqrt(tr(Sigma)),  y = gamma Y + beta per channel
    G = 1 is layer norm. No state; training and evaluation are the same, no image sees another, and
    the layer is not affine. Where m < G, Sigma is singular and Y is not white, only bounded.

    Variants: "paper" as above; "official" the released Newton code, which leaves eps out (there an
    image whose channels are all constant gives NaN, here beta).

    Args:
        channels: C.
        group: Accepted for one signature with the batch normalizers; without effect.
        replicas: Likewise.
        eps: Added to the diagonal of Sigma.
        affine: Learn gamma and beta.
        groups: G; more than C means one channel each.
        iterations: T.
        variant: "paper" or "official".

    Raises:
        ValueError: `groups` does not divide the channels, iterations < 0, or unknown variant.
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
        groups: int = 64,
        iterations: int = 5,
        variant: str = "paper",
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        integer(groups=groups)
        integer(0, iterations=iterations)
        self.groups, self.iterations, self.variant = min(groups, channels), iterations, variant
        if channels % self.groups:
            raise ValueError(
                f"groups={groups} does not divide {channels} channels (norm.layer.groups)"
            )
        if variant not in VARIANTS:
            raise ValueError(f"{variant=} must be one of {VARIANTS}")

    def forward(self, x: Tensor) -> Tensor:
        """Whiten x (N, C, *), in training and evaluation alike."""
        self.check(x)
        if x.numel() == 0:
            return x.clone()
        with torch.autocast(x.device.type, enabled=False):
            v = x.to(compute_dtype(x)).reshape(len(x), self.groups, -1)
            y = self._whiten(v - v.mean(2, keepdim=True)).reshape(x.shape)
        if self.weight is not None:
            shape = (1, -1) + (1,) * (x.dim() - 2)
            y = torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))
        return dense(y, x).to(x.dtype)

    def _whiten(self, v: Tensor) -> Tensor:
        """Multiply centred v (N, G, m) by the iteration's inverse root of its covariance."""
        one = torch.eye(self.groups, dtype=v.dtype, device=v.device)
        sigma = v @ v.mT / v.shape[2]
        if self.variant == "paper":
            sigma = sigma + self.eps * one
        trace = sigma.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        trace = torch.where(trace > 0, trace, 1)  # an image of zeros stays one
        sigma, root = sigma / trace, one.expand_as(sigma)
        for _ in range(self.iterations):
            root = torch.baddbmm(root, root @ root @ root, sigma, beta=1.5, alpha=-0.5)
        return root @ v / trace.sqrt()

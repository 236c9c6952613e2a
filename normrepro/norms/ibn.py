"""IBN-Net's layer (Pan et al. 2018), which XBNBlock's Table 2 compares with."""

import torch
from torch import Tensor

from normrepro.norms.arguments import number
from normrepro.norms.base import Normalizer
from normrepro.norms.batch import BatchNorm
from normrepro.norms.layout import compute_dtype, dense


class IBN(Normalizer):
    """Instance norm on the first channels, batch norm on the rest: IBN-a's first norm of a block.

        y = gamma [IN(x_1), BN(x_2)] + beta,  x_1 the first int(ratio C) channels of x (N, C, *)

    State: `bn`, a BatchNorm of the other channels. Evaluation: BN by its running statistics, IN as
    in training, so the layer is not affine and does not fold. Gamma and beta are one pair (C) here,
    two pairs in the released code, which also fails where ratio is not 1/2 or C is odd.

    IBN-a is configs/norm/ibn_a.yaml: this layer as the first norm of every block of stages 1 to 3.
    Of IBN-b, configs/norm/ibn_b.yaml has the affine IN in place of the stem's BN. Its other part,
    an affine IN between the addition and the ReLU of the last block of stages 1 and 2, stands where
    the model has no norm: no replacement of norms can give it, so ibn_b is IBN-b without it.

    Args:
        channels: C.
        group: Images per set of batch statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the variances.
        affine: Learn gamma and beta.
        momentum: Weight of the new value in the running statistics.
        ratio: Part of the channels that instance norm takes.

    Raises:
        ValueError: One of the parts has no channel.
    """

    linear = False

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float | None = 0.1,
        ratio: float = 0.5,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        number(0, 1, ratio=ratio)
        self.half = int(channels * ratio)
        if not 0 < self.half < channels:
            raise ValueError(f"{ratio=} of {channels} channels leaves one norm without any")
        self.bn = BatchNorm(channels - self.half, group, replicas, eps, False, momentum)

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize both parts."""
        return self.infer(x)

    def infer(self, x: Tensor) -> Tensor:
        """Normalize both parts, the second as its BatchNorm's mode has it."""
        first, rest = x.to(compute_dtype(x)).split([self.half, self.channels - self.half], 1)
        first = torch.group_norm(first, self.half, eps=self.eps) if x.numel() else first
        y = torch.cat([first, self.bn(rest)], 1)
        if self.weight is not None:
            shape = (1, -1) + (1,) * (x.dim() - 2)
            y = torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))
        return dense(y, x).to(x.dtype)

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over mean and variance of the channels of batch norm."""
        return self.bn.adopt(mean[self.half :], var[self.half :])

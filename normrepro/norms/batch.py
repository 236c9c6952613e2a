"""Batch normalization over groups of a device's batch, or over several devices."""

import torch
from torch import Tensor

from normrepro.norms import core
from normrepro.norms.base import Normalizer, Stats, across_calls


class BatchNorm(Normalizer):
    """Batch normalization over groups of images.

    Training (MABN eq. 1-5), per group and channel:
        xhat = (x - mu_g) / sqrt(var_g + eps),  y = gamma xhat + beta,  biased variance;
        gx = gamma / sigma_g (gy - mean(gy) - xhat mean(gy xhat)).
    State: running_mean, running_var (C) or (R, C), moved once per step towards the mean over the
    groups of the group means and unbiased group variances (never the pooled variance: the bias of
    small groups is what the papers study); num_batches_tracked counts steps.
    Evaluation: gamma (x - running_mean) / sqrt(running_var + eps) + beta.
    With one group this is torch.nn.BatchNorm1d/2d/3d, buffers included.

    Args:
        channels: C.
        group: Images per set of statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the variance.
        affine: Learn gamma and beta.
        momentum: Weight of the new value; None averages all steps equally, as in torch.
    """

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        self.momentum = momentum
        self.add_state("running_mean", torch.zeros(channels))
        self.add_state("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by each group's own statistics."""
        mean, var = group_moments(x, rows)
        bessel = bessel_factor(x, rows)
        self.observe(
            x,
            {
                "mean": self.per_replica(mean).mean(1),
                "var": self.per_replica(var).mean(1) * bessel,
            },
        )
        inv = (var + self.eps).rsqrt()
        return core.Normalize.apply(x, self.weight, self.bias, mean, inv, None, None, core.own)

    def advance(self, seen: list[Stats]) -> None:
        """Move the running statistics once."""
        self.num_batches_tracked += 1
        factor = self.momentum
        if factor is None:
            factor = 1 / self.num_batches_tracked
        for name in ("mean", "var"):
            state = self.state(f"running_{name}")
            state += factor * (across_calls(seen, name) - state)

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over mean and variance."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return True

    def inference_stats(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and 1/sqrt(running variance + eps)."""
        return self.eval_buffer("running_mean"), (
            self.eval_buffer("running_var") + self.eps
        ).rsqrt()


@torch.no_grad()
def group_moments(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance (M, C) of the groups of a batch.

    Raises:
        ValueError: A group has a single value per channel, whose variance says nothing.
    """
    if x.numel() == rows * x.shape[1]:
        raise ValueError(
            f"one value per channel and group in a batch of shape {tuple(x.shape)}: "
            "batch statistics need more; choose a larger group (batch.norm)"
        )
    return core.moments(x, rows)


def bessel_factor(x: Tensor, rows: int) -> float:
    """Return n / (n - 1) for the n values of a group."""
    n = x.numel() // (rows * x.shape[1])
    return n / (n - 1)

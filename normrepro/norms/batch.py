"""Batch normalization over groups of a device's batch, or over several devices."""

from functools import partial

import torch
from torch import Tensor

from normrepro.norms import core
from normrepro.norms.arguments import integer, number
from normrepro.norms.base import Normalizer, Stats, across_calls, move
from normrepro.norms.joined import join_means, join_moments


class BatchNorm(Normalizer):
    """Batch normalization over groups of images, from one image to all devices' batches.

    Training (MABN eq. 1-5), per group and channel:
        xhat = (x - mu_g) / sqrt(var_g + eps),  y = gamma xhat + beta,  biased variance;
        gx = gamma / sigma_g (gy - mean(gy) - xhat mean(gy xhat)).
    State: running_mean, running_var (C) or (R, C), moved once per step towards the mean over the
    groups of the group means and unbiased group variances (never the pooled variance: the bias of
    small groups is what the papers study); num_batches_tracked counts steps.
    Evaluation: gamma (x - running_mean) / sqrt(running_var + eps) + beta.
    With one group this is torch.nn.BatchNorm1d/2d/3d, buffers included.

    A group larger than a replica's share joins consecutive replicas, first of this process, then of
    consecutive processes (SyncBN). Unlike torch.nn.SyncBatchNorm it works on CPUs.

    Args:
        channels: C.
        group: Images per set of statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the variance.
        affine: Learn gamma and beta.
        momentum: Weight of the new value; None averages all steps equally, as in torch.
        processes: Join all images of so many consecutive processes, whatever each one's number;
            None leaves it to `group`.

    Raises:
        ValueError: In training, a group that neither divides a share nor joins whole replicas, or
            processes that were not started.
    """

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float | None = 0.1,
        processes: int | None = None,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        number(0, 1, momentum=0 if momentum is None else momentum)
        integer(processes=1 if processes is None else processes)
        self.momentum, self.processes = momentum, processes
        self.add_state("running_mean", torch.zeros(channels))
        self.add_state("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by each group's own statistics."""
        processes = self._processes(x)
        if processes > 1:
            return self._normalize_joined(x, processes)
        check_values(x, rows)
        y, mean, var = core.NormalizeOwn.apply(x, self.weight, self.bias, rows, self.eps)
        self._observe(x, mean, var, bessel_factor(x, rows))
        return y

    def _normalize_joined(self, x: Tensor, processes: int) -> Tensor:
        count = x.numel() // self.channels
        with torch.no_grad():
            mean, var, total = join_moments(*core.moments(x, 1), count, processes)
            self._observe(x, mean, var, total / (total - 1))
        inv = (var + self.eps).rsqrt()
        rule = partial(_join, count, total, processes)
        return core.Normalize.apply(x, self.weight, self.bias, mean, inv, None, None, rule)

    def _observe(self, x: Tensor, mean: Tensor, var: Tensor, bessel: float | Tensor) -> None:
        means = {"mean": mean, "var": var}
        stats = {k: self.per_replica(v).mean(1) for k, v in means.items()}
        self.observe(x, {"mean": stats["mean"], "var": stats["var"] * bessel})

    def rows(self, x: Tensor) -> int:
        """Return the number of groups on this process; joined replicas make one."""
        share = x.shape[0] // self.replicas
        if self.processes is None and (self.group is None or self.group <= share):
            return super().rows(x)
        if x.numel() == 0 or x.shape[0] % self.replicas:
            return super().rows(x)  # which says what is wrong
        if self._processes(x) > 1:
            return 1
        joined = x.shape[0] if self.processes else self.group
        if joined % share or self.replicas % (joined // share):
            raise ValueError(
                f"group={joined} (batch.norm) must join whole replicas of {share} images, in a "
                f"number that divides the {self.replicas} of a process"
            )
        return x.shape[0] // joined

    def _processes(self, x: Tensor) -> int:
        """Return how many processes share a set of statistics."""
        if self.processes is not None:
            return self.processes
        local = x.shape[0]
        if self.group is None or self.group <= local:
            return 1
        if self.group % local:
            raise ValueError(
                f"group={self.group} (batch.norm) must be a multiple of the {local} images of a "
                "process that it joins with others"
            )
        return self.group // local

    def per_replica(self, stat: Tensor) -> Tensor:
        """View a statistic (M, C) as (R, G, C); replicas that share a group each get its value."""
        if stat.shape[0] < self.replicas:
            stat = stat.repeat_interleave(self.replicas // stat.shape[0], dim=0)
        return super().per_replica(stat)

    def advance(self, seen: list[Stats]) -> None:
        """Move the running statistics once."""
        self.num_batches_tracked += 1
        factor = self.momentum
        if factor is None:
            factor = 1 / self.num_batches_tracked.double()
        for name in ("mean", "var"):
            move(self.state(f"running_{name}"), across_calls(seen, name), factor)

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over mean and variance."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return True

    def inference_stats(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and 1/sqrt(running variance + eps)."""
        variance = self.eval_buffer("running_var")
        return self.eval_buffer("running_mean"), (variance + self.eps).rsqrt()


def _join(
    count: int, total: Tensor, processes: int, g: Tensor, psi: Tensor
) -> tuple[Tensor, Tensor]:
    """Average the backward statistics over the processes that shared the forward ones."""
    g, psi = join_means([g, psi], count, total, processes)
    return g, psi


def group_moments(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance (M, C) of the groups of a batch, without gradient.

    Raises:
        ValueError: A group has a single value per channel, whose variance says nothing.
    """
    check_values(x, rows)
    return core.moments(x, rows)


def check_values(x: Tensor, rows: int) -> None:
    """Refuse groups that have a single value per channel."""
    if x.numel() == rows * x.shape[1]:
        raise ValueError(
            f"one value per channel and group in a batch of shape {tuple(x.shape)}: "
            "batch statistics need more; choose a larger group (batch.norm)"
        )


def bessel_factor(x: Tensor, rows: int) -> float:
    """Return n / (n - 1) for the n values of a group."""
    n = x.numel() // (rows * x.shape[1])
    return n / (n - 1)

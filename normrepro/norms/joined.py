"""Statistics over several processes: synchronized batch normalization, on gloo and NCCL alike."""

from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor


@cache
def process_group(processes: int) -> dist.ProcessGroup | None:
    """Return the group of `processes` consecutive ranks that this one belongs to.

    Every rank must call it at the same point, as the layers of one model do.

    Raises:
        ValueError: The ranks do not divide into such groups.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world % processes:
        raise ValueError(
            f"this normalization batch spans {processes} processes, and {world} were started: "
            "start a multiple, or lower group (batch.norm)"
        )
    mine = None
    for first in range(0, world, processes):
        group = dist.new_group(list(range(first, first + processes)))
        if first <= dist.get_rank() < first + processes:
            mine = group
    return mine


def join_moments(
    mean: Tensor, var: Tensor, count: int, processes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Join mean and biased variance (1, C) of each process's `count` values.

    Returns:
        Mean and variance (1, C) over the values of all processes, and their number (0-d); counts
        may differ from process to process.
    """
    local = torch.cat([mean.flatten(), var.flatten(), mean.new_tensor([count])])
    parts = [torch.empty_like(local) for _ in range(processes)]
    dist.all_gather(parts, local, group=process_group(processes))
    means, variances, counts = torch.stack(parts).split([mean.numel(), var.numel(), 1], dim=1)
    total = counts.sum()
    share = counts / total  # (P, 1)
    joined = (share * means).sum(0, keepdim=True)
    spread = (share * (variances + (means - joined).square())).sum(0, keepdim=True)
    return joined, spread, total


def join_means(values: list[Tensor], count: int, total: Tensor, processes: int) -> list[Tensor]:
    """Average backward statistics (1, C) over the values of all processes."""
    sums = torch.stack(values) * count
    dist.all_reduce(sums, group=process_group(processes))
    return list(sums / total)

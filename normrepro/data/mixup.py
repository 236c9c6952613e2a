"""Mixup (Zhang et al. 2018): each image and label is blended with those of a partner.

Partners are drawn within one device's share of the batch, and each device draws its own weight, as
if it trained alone: what is blended depends on (seed, step, device), not on the processes. The
paper's authors draw one weight for the batch of a process, which is the same where there is one
device.
"""

import random

import torch
from torch import Tensor

from normrepro.data.base import generator, seed_of


def mixup(
    x: Tensor, y: Tensor, classes: int, alpha: float, share: int, first: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Blend a process's images and labels.

    Args:
        x: Images (N, C, H, W) of whole devices, one after the other.
        y: Labels (N,).
        classes: Number of classes.
        alpha: Both parameters of the Beta distribution of the weights, above 0.
        share: Images per device.
        first: Number of the process's first device among the protocol's.
        seed: The run's seed.
        step: Optimizer steps before this one.

    Returns:
        Blended images (N, C, H, W) and targets (N, classes), whose rows add up to 1.
    """
    devices = range(first, first + len(x) // share)
    keys = [(seed, "mixup", step, device) for device in devices]
    drawn = [random.Random(seed_of(*key)).betavariate(alpha, alpha) for key in keys]
    partners = [torch.randperm(share, generator=generator(*key)) for key in keys]
    partner = torch.cat([p + share * i for i, p in enumerate(partners)]).to(x.device)
    weight = torch.tensor(drawn, dtype=torch.float64).repeat_interleave(share).to(x)
    target = torch.nn.functional.one_hot(y, classes).to(x.dtype)
    return _blend(x, partner, weight), _blend(target, partner, weight)


def _blend(values: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Return weight * values + (1 - weight) * values of the partners, the weight (N,)."""
    weight = weight.view(-1, *[1] * (values.dim() - 1))
    return torch.lerp(values[partner], values, weight)

"""Which images share statistics, and how a block of images becomes rows of numbers per channel.

Image i of the batch is on device i // share; a normalization batch is `group` consecutive images: a
part of one device's share, or the shares of several consecutive devices (synchronized).
"""

import torch
from torch import Tensor


def layout(images: int, group: int | None, replicas: int) -> list[tuple[slice, list[int]]]:
    """List the sets of images in time order, each with the devices it lies on."""
    share = images // replicas
    assert share * replicas == images
    size = share if group is None else group
    assert share % size == 0 or (size % share == 0 and images % size == 0)
    sets = []
    for start in range(0, images, size):
        rows = slice(start, start + size)
        devices = sorted({i // share for i in range(start, start + size)})
        sets.append((rows, devices))
    return sets


def per_channel(block: Tensor) -> Tensor:
    """Turn images (B, C, *) into one row of numbers per channel: (C, m)."""
    return torch.stack([block[:, c].reshape(-1) for c in range(block.shape[1])])


def images_like(rows: Tensor, block: Tensor) -> Tensor:
    """Turn rows (C, m) back into images shaped like `block` (B, C, *)."""
    out = torch.empty_like(block)
    for c in range(block.shape[1]):
        out[:, c] = rows[c].reshape(block[:, c].shape)
    return out


def mean(rows: Tensor) -> Tensor:
    """Average each row; (C, m) -> (C, 1), ready to broadcast."""
    return rows.sum(dim=1, keepdim=True) / rows.shape[1]


def variance(rows: Tensor) -> Tensor:
    """Biased variance of each row; (C, m) -> (C, 1)."""
    return mean((rows - mean(rows)) ** 2)


def average(values: list[Tensor]) -> Tensor:
    """Plain mean of a list of equally shaped tensors."""
    total = torch.zeros_like(values[0])
    for value in values:
        total = total + value
    return total / len(values)

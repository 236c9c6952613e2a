"""A run's precision and memory format, as they act on images and on computing."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def shaped(x: Tensor, precision: str, channels_last: bool) -> Tensor:
    """Return images (N, C, H, W) in the type and the order in memory that a run computes in."""
    memory = torch.channels_last if channels_last else torch.preserve_format
    return x.to(torch.float64 if precision == "float64" else x.dtype, memory_format=memory)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Compute in half precision where a run says so."""
    half = HALVES.get(precision)
    return nullcontext() if half is None else torch.autocast(device.type, dtype=half)

"""How a batch lies in memory: views as groups, statistics shaped to match. Letters: `core.py`."""

import torch
from torch import Tensor

Maybe = Tensor | None


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of statistics: float32 for half-precision inputs, else the input's own."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def channels_last_form(x: Tensor) -> torch.memory_format:
    """Return torch's name for channels last, of x (N, C, H, W) or (N, C, D, H, W)."""
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def is_channels_last(x: Tensor) -> bool:
    """Tell whether x (N, C, H, W) or (N, C, D, H, W) has its channels innermost in memory."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=channels_last_form(x))


def split(x: Tensor, rows: int, channels_last: bool) -> Tensor:
    """View a batch as groups without copying where its memory allows it.

    Returns (M, B, C, S), or (M, B S, C) for channels-last memory and where S = 1.
    """
    n, c = x.shape[:2]
    if channels_last:
        x = x.contiguous(memory_format=channels_last_form(x))
        return x.movedim(1, -1).reshape(rows, -1, c)
    if x.numel() == n * c:
        return x.contiguous().view(rows, n // rows, c)
    return x.contiguous().view(rows, n // rows, c, -1)


def spread(stat: Tensor, like: Tensor) -> Tensor:
    """Shape a statistic (M, C) so that it broadcasts against a split batch."""
    m, c = stat.shape
    return stat.view(m, 1, c, 1) if like.dim() == 4 else stat.view(m, 1, c)


def restore(v: Tensor, like: Tensor) -> Tensor:
    """Undo `split`: give a result the shape, memory format and dtype of the batch it came from."""
    if is_channels_last(like):
        n, c, *space = like.shape
        v = v.view(n, *space, c).movedim(-1, 1)
    return v.reshape(like.shape).to(like.dtype)


def empty_like(x: Tensor) -> Tensor:
    """Allocate a batch of x's shape, channels last where x is, else contiguous."""
    form = channels_last_form(x) if is_channels_last(x) else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=form)


def dense(x: Tensor, like: Tensor) -> Tensor:
    """Return x, or a copy of it, channels last where `like` is, else contiguous."""
    if is_channels_last(like):
        return x.contiguous(memory_format=channels_last_form(x))
    return x.contiguous()

"""Simple moving averages over the last m values, without loops and without asking the device how many there are."""

import torch
from torch import Tensor


def slide(window: Tensor, count: Tensor, new: Tensor) -> Tensor:
    """Average each new value with the values before it, m in all, or as many as there are.

    Args:
        window: (R, m, C), the newest entry last, zeros where there is none yet.
        count: Number of entries of the window (0-d integer).
        new: (R, G, C), in time order.

    Returns:
        (R, G, C): entry i is the mean of the last m of the window's entries and new[:, : i + 1] (MABN eq. 13).
    """
    m, g = window.shape[1], new.shape[1]
    sums = torch.cat([window, new], 1).unfold(1, m, 1)[:, 1:].sum(-1)
    there = (count + torch.arange(1, g + 1, device=new.device)).clamp(max=m)
    return sums / there.view(1, g, 1).to(new.dtype)


def push(window: Tensor, new: Tensor) -> Tensor:
    """Return the window (R, m, C) with the new values (R, G, C) appended and the oldest dropped."""
    return torch.cat([window, new], 1)[:, -window.shape[1] :]


def push_finite(window: Tensor, count: Tensor, new: Tensor) -> None:
    """Append values in place, unless one of them is not finite (a step that AMP will drop)."""
    fine = new.isfinite().all()
    window.copy_(torch.where(fine, push(window, new), window))
    count.copy_((count + new.shape[1] * fine).clamp(max=window.shape[1]))

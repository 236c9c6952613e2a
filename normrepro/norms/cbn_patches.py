"""Derivatives of a convolution's statistics: x_o = <w_o, p> + b_o for input patches p of length D.

Over the m values of a group, the mean mu_o and the variance v_o of x_o have, as functions of w_o,
    d mu_o / d w_o = pbar = mean p, the same for all o of a convolution group (CBN eq. 15);
    d v_o / d w_o = H_o = 2 mean((x_o - mu_o) p) = G_o - 2 mu_o pbar, where G_o = d nu_o / d w_o.
The variance does not depend on the bias, and is a quadratic form: <H_o, w_o> = 2 v_o.
E is the number of groups looked at. A linear layer is a convolution with a kernel of one value over
an axis of S rows.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Geometry(NamedTuple):
    """A convolution's numbers, for each spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    margins: tuple[tuple[int, int], ...]  # padding before and after
    mode: str
    groups: int


def geometry(conv: nn.Module) -> Geometry:
    """Read the numbers of a Conv1d, Conv2d, Conv3d or Linear."""
    if isinstance(conv, nn.Linear):
        return Geometry((1,), (1,), (1,), ((0, 0),), "constant", 1)
    if conv.padding == "same":
        spare = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        margins = tuple((s // 2, s - s // 2) for s in spare)
    else:
        sizes = (0,) * len(conv.kernel_size) if conv.padding == "valid" else conv.padding
        margins = tuple((p, p) for p in sizes)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return Geometry(conv.kernel_size, conv.stride, conv.dilation, margins, mode, conv.groups)


@lru_cache(maxsize=1024)
def taps(
    size: int,
    kernel: int,
    stride: int,
    dilation: int,
    margin: tuple[int, int],
    mode: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Build the matrix (size, kernel) that averages the values along an axis under each tap."""
    index = torch.arange(size, dtype=torch.float64)
    there = F.pad(index.view(1, 1, -1), margin, mode, -1.0 if mode == "constant" else None)[0, 0]
    outputs = (len(there) - dilation * (kernel - 1) - 1) // stride + 1
    at = dilation * torch.arange(kernel) + stride * torch.arange(outputs).view(-1, 1)
    hits = (there[at] == index.view(-1, 1, 1)).sum(1)
    return (hits.double() / outputs).to(device, dtype)


def mean_patch(conv: nn.Module, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Average the input patches of each group: y (E, B, Cin, *) -> (E, conv groups, D)."""
    at = geometry(conv)
    y = _mean_image(y, dtype)
    for axis in reversed(range(len(at.kernel))):
        numbers = (v[axis] for v in (at.kernel, at.stride, at.dilation, at.margins))
        y = (y @ taps(y.shape[-1], *numbers, at.mode, dtype, y.device)).movedim(-1, 2)
    return y.reshape(y.shape[0], at.groups, -1)


def _mean_image(y: Tensor, dtype: torch.dtype) -> Tensor:
    if y.shape[1] == 1:
        return y[:, 0].to(dtype)
    if y.stride(2) == 1:  # channels last; reduced as it is, it would go through memory in strides
        return y.movedim(2, -1).mean(1, dtype=dtype).movedim(-1, 1)
    return y.mean(1, dtype=dtype)


def slope(conv: nn.Module, y: Tensor, x: Tensor, mu: Tensor, patch: Tensor) -> Tensor:
    """Compute H of each group: (E, C, D).

    In general this takes a weight gradient of the convolution for each entry that a window stores,
    which was faster than one call with E convolution groups. Where a group has few positions beside
    D, as at the end of a ResNet, one product of patches is twice as fast as both.

    Args:
        conv: The convolution.
        y: Its input (E, B, Cin, *).
        x: Its output (E, B, C, *).
        mu: Mean of x (E, C).
        patch: Mean patch (E, conv groups, D).
    """
    y, x, few = y.to(mu.dtype), x.to(mu.dtype), 16 * x[0, :, 0].numel() < patch.shape[2]
    if isinstance(conv, nn.Linear):
        return by_patches(y, x, mu)
    if few and y.dim() == 5 and conv.groups == 1:
        at = geometry(conv)
        images, padding = padded(y.flatten(0, 1), at)
        patches = F.unfold(images, at.kernel, at.dilation, padding, at.stride)
        return by_patches(patches.unflatten(0, y.shape[:2]), x.flatten(3), mu)
    return by_convolution(conv, y, x, mu, patch)


def by_patches(patches: Tensor, x: Tensor, mu: Tensor) -> Tensor:
    """Compute H as a product of centred values (E, B, C, S) with patches (E, B, D, S)."""
    centred = (x - mu[:, None, :, None]) * (2 / x[0, :, 0].numel())
    return torch.einsum("ebos,ebds->eod", centred, patches)


def by_convolution(conv: nn.Module, y: Tensor, x: Tensor, mu: Tensor, patch: Tensor) -> Tensor:
    """Compute G as a weight gradient for each group, and H = G - 2 mu pbar."""
    at, count = geometry(conv), x[0, :, 0].numel()
    images, padding = padded(y.flatten(0, 1), at)
    out = patch.new_empty(*mu.shape, patch.shape[2])
    like = out.new_empty(1).expand(conv.weight.shape)
    rest = (None, at.stride, padding, at.dilation, False, (0,) * len(at.kernel), at.groups)
    gradient = torch.ops.aten.convolution_backward
    for entry, image in enumerate(images.unflatten(0, y.shape[:2])):
        _, raw, _ = gradient(x[entry], image, like, *rest, (False, True, False))
        torch.mul(raw, 2 / count, out=out[entry].view(raw.shape))
    by_filter = out.view(*patch.shape[:2], -1, patch.shape[2])
    by_filter.addcmul_(mu.view(*by_filter.shape[:3], 1), patch.unsqueeze(2), value=-2)
    return out


def products(
    patch: Tensor, slope: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return <pbar, w> + b and <H, w>, each (R, S, C), of S groups for each of R replicas.

    Args:
        patch: pbar (R, S, conv groups, D).
        slope: H (R, S, C, D).
        weight: w (C, D).
        bias: b (C), or None to leave it out.
    """
    filters = weight.view(patch.shape[2], -1, weight.shape[1])
    means = torch.einsum("rsgd,god->rsgo", patch, filters).flatten(2)
    squares = torch.einsum("rsod,od->rso", slope, weight)
    return means if bias is None else means + bias, squares


def padded(images: Tensor, at: Geometry) -> tuple[Tensor, tuple[int, ...]]:
    """Pad images (N, C, *) where a convolution's own zero padding cannot; return what it can."""
    if at.mode == "constant" and all(before == after for before, after in at.margins):
        return images, tuple(before for before, _ in at.margins)
    amounts = [n for margin in reversed(at.margins) for n in margin]
    return F.pad(images, amounts, at.mode), (0,) * len(at.margins)

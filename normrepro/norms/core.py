"""The arithmetic that every batch-statistics layer shares.

Axis letters used in the whole package: N images of a batch, C channels, S values per image and channel (H x W, L, ...),
R replicas (devices of the protocol), G groups (normalization batches of a replica), B images of a group, M = R x G.
Groups are consecutive images, so a statistic is a tensor (M, C).

One autograd function covers the family of claims "backward statistics" (MABN eq. 4, 16, 20; BRN; CBN):

    z  = (x - mean) inv                      y  = gamma (r z + d) + beta
    g' = gamma r gy                          g  = mean(g'),  psi = mean(g' z)      over a group
    gx = inv (g' - gbar - z psibar)          (gbar, psibar) = rule(g, psi)

BN returns (g, psi) itself, the modified form drops gbar, MABN puts moving averages in their place.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rule = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]


def own(g: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch's own backward statistics: the rule of BN and BRN."""
    return g, psi


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of statistics: float32 for half-precision inputs, else the input's own."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def is_channels_last(x: Tensor) -> bool:
    """Tell whether a tensor (N, C, H, W) or (N, C, D, H, W) lies in memory with its channels innermost."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.is_contiguous(memory_format=form)


def split(x: Tensor, rows: int, channels_last: bool) -> Tensor:
    """View a batch as groups without copying where its memory allows it.

    Returns (M, B, C, S), or (M, B S, C) for channels-last memory and for inputs (N, C).
    """
    n, c = x.shape[:2]
    if channels_last:
        form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=form).movedim(1, -1).reshape(rows, -1, c)
    if x.dim() == 2:
        return x.contiguous().view(rows, n // rows, c)
    return x.contiguous().view(rows, n // rows, c, -1)


def spread(stat: Tensor, like: Tensor) -> Tensor:
    """Shape a statistic (M, C) so that it broadcasts against a split batch."""
    m, c = stat.shape
    return stat.view(m, 1, c, 1) if like.dim() == 4 else stat.view(m, 1, c)


def reduce(v: Tensor) -> Tensor:
    """Sum a split batch over each group: (M, C)."""
    if v.dim() == 4:
        return v.sum(3).sum(1)
    if v.is_cuda:
        return v.sum(1)
    # On CPUs a product with ones is an order of magnitude faster than a strided sum.
    with torch.autocast(v.device.type, enabled=False):
        return torch.matmul(v.new_ones(v.shape[1]), v)


def reduce_square(v: Tensor) -> Tensor:
    """Sum the squares of a split batch over each group: (M, C)."""
    if v.dim() == 4:
        return torch.linalg.vector_norm(v, dim=3).square_().sum(1)
    return reduce(v * v)


def moments(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance of each group of a batch (N, C, *): two tensors (M, C).

    The variance is taken about a mean that is corrected once, so an offset of 1e4 standard deviations does no harm.
    """
    v = split(x, rows, is_channels_last(x)).to(compute_dtype(x))
    count = v[0].numel() // v.shape[2]
    mean = reduce(v) / count
    centred = v - spread(mean, v)
    error = reduce(centred) / count
    variance = reduce_square(centred) / count - error.square()
    return mean + error, variance.clamp_(min=0)


def mean_square(x: Tensor, rows: int) -> Tensor:
    """Compute the mean of the squares of each group, MABN's chi_B^2 (eq. 15): (M, C)."""
    v = split(x, rows, is_channels_last(x)).to(compute_dtype(x))
    return reduce_square(v) / (v[0].numel() // v.shape[2])


class Normalize(torch.autograd.Function):
    """The family in this module's docstring; statistics enter as constants, their gradient is the rule's."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        inv: Tensor,
        r: Tensor | None,
        d: Tensor | None,
        rule: Rule,
    ) -> Tensor:
        """Normalize x (N, C, *) with mean, inv, r, d (M, C) and weight, bias (C)."""
        ctx.save_for_backward(x, weight, mean, inv, r, d)
        ctx.rule, ctx.channels_last = rule, is_channels_last(x)
        v = split(x, inv.shape[0], ctx.channels_last).to(inv.dtype)
        scale = inv if r is None else inv * r
        shift = torch.zeros_like(inv) if d is None else d
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        if mean is not None:
            v = v - spread(mean, v)
        # Written into a tensor of its own: a view made in here could not be modified in place by the next layer.
        y = empty_like(x, inv.dtype)
        out = split(y, inv.shape[0], ctx.channels_last)
        torch.addcmul(spread(shift, v), v, spread(scale, v), out=out)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the rule to the group's backward statistics."""
        x, weight, mean, inv, r, d = ctx.saved_tensors
        v = split(x, inv.shape[0], ctx.channels_last).to(inv.dtype)
        u = split(gy, inv.shape[0], ctx.channels_last).to(inv.dtype)
        if mean is not None:
            v = v - spread(mean, v)
        count = v[0].numel() // v.shape[2]
        sum_g, sum_gz = reduce(u), reduce(u * v) * inv  # (M, C): sums of gy and of gy z
        gweight = sum_gz if r is None else r * sum_gz
        if d is not None:
            gweight = gweight + d * sum_g
        scale = torch.ones_like(inv) if r is None else r
        scale = scale if weight is None else scale * weight
        gbar, psibar = ctx.rule(scale * sum_g / count, scale * sum_gz / count)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = restore(combine(u, v, inv, scale, gbar, psibar), x)
        gw = gweight.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        gb = sum_g.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return gx, gw, gb, None, None, None, None, None


def empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate a batch of x's shape, channels last where x is, else contiguous."""
    form = torch.contiguous_format
    if is_channels_last(x):
        form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=form)


def combine(
    u: Tensor, v: Tensor, inv: Tensor, scale: Tensor, gbar: Tensor | None, psibar: Tensor | None
) -> Tensor:
    """Return inv (scale u - gbar - z psibar), where v is z / inv: the last line of the family."""
    gx = u * spread(inv * scale, u)
    if gbar is not None:
        gx -= spread(inv * gbar, u)
    if psibar is not None:
        gx.addcmul_(v, spread(inv * inv * psibar, u), value=-1)
    return gx


def restore(v: Tensor, like: Tensor) -> Tensor:
    """Undo `split`: give a result the shape, memory format and dtype of the batch it came from."""
    if is_channels_last(like):
        n, c, *space = like.shape
        v = v.view(n, *space, c).movedim(-1, 1)
    return v.reshape(like.shape).to(like.dtype)

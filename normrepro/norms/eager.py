"""The arithmetic of `core.py` in torch's own operations, for every device and where no compiler is.

A reduction over a strided axis can be a hundred times slower than the batch norm it serves, so none
is taken on CPUs: contiguous rows are reduced by torch's row kernels, columns by products with ones.
"""

from functools import lru_cache

import torch
from torch import Tensor

from normrepro.norms.layout import (
    Maybe,
    dense,
    empty_like,
    is_channels_last,
    restore,
    split,
    spread,
)


def reduce(v: Tensor) -> Tensor:
    """Sum a split batch over each group: (M, C)."""
    if v.dim() == 4:
        return v.sum(3).sum(1)
    if v.is_cuda:
        return v.sum(1)
    m, p, c = v.shape
    block = _block(p)
    with torch.autocast(v.device.type, enabled=False):
        return torch.matmul(v.new_ones(block), v.reshape(m, p // block, block, c)).sum(1)


@lru_cache(maxsize=256)
def _block(p: int) -> int:
    """Choose how many of p values to add up at a time: all, if 32 to 128 do not divide them."""
    return next((b for b in range(128, 31, -1) if p % b == 0), p)


def reduce_square(v: Tensor) -> Tensor:
    """Sum the squares of a split batch over each group: (M, C)."""
    if v.dim() == 4:
        return torch.linalg.vector_norm(v, dim=3).square_().sum(1)
    return reduce(v * v)


def moments(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance (M, C).

    About a mean that is corrected once, so an offset of 1e4 deviations does no harm.
    """
    v = split(x, rows, is_channels_last(x))
    count = v[0].numel() // v.shape[2]
    mean = reduce(v) / count
    centred = v - spread(mean, v)
    error = reduce(centred) / count
    variance = reduce_square(centred) / count - error.square()
    return mean + error, variance.clamp_(min=0)


def mean_square(x: Tensor, rows: int) -> Tensor:
    """Compute the mean of the squares (M, C)."""
    v = split(x, rows, is_channels_last(x))
    return reduce_square(v) / (v[0].numel() // v.shape[2])


def affine(
    x: Tensor, mean: Maybe, inv: Tensor, r: Maybe, d: Maybe, weight: Maybe, bias: Maybe
) -> Tensor:
    """Return weight (r (x - mean) inv + d) + bias."""
    scale = inv if r is None else inv * r
    shift = d
    if weight is not None:
        scale, shift = scale * weight, None if d is None else d * weight
    if bias is not None:
        shift = bias.expand_as(inv) if shift is None else shift + bias
    # Into a tensor of its own: a view made in a Function's forward cannot be modified in place.
    y = empty_like(x)
    last = is_channels_last(x)
    v, out = split(x, inv.shape[0], last), split(y, inv.shape[0], last)
    if mean is None:
        torch.mul(v, spread(scale, v), out=out)
    else:
        torch.sub(v, spread(mean, v), out=out).mul_(spread(scale, v))
    if shift is not None:
        out.add_(spread(shift, v))
    return y


def normalize(
    x: Tensor, rows: int, eps: float, weight: Maybe, bias: Maybe
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, mean, biased variance and inv = 1/sqrt(var + eps) of the groups' own statistics."""
    mean, var = moments(x, rows)
    inv = (var + eps).rsqrt()
    return affine(x, mean, inv, None, None, weight, bias), mean, var, inv


def backward_sums(
    u: Tensor, x: Tensor, mean: Maybe, inv: Tensor, r: Maybe, d: Maybe, weight: Maybe
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return g and psi (M, C) of g' = weight r u, and the gradients (C) of weight and bias."""
    rows, last = inv.shape[0], is_channels_last(x)
    v, u = split(x, rows, last), split(dense(u, x), rows, last)
    count = v[0].numel() // v.shape[2]
    if v.dim() == 4 and v.device.type == "cpu":
        sum_g, sum_gv = _plane_products(u, v, mean)
    else:
        sum_g = reduce(u)
        sum_gv = reduce(u * (v if mean is None else v - spread(mean, v)))
    sum_gz = sum_gv * inv
    gweight = sum_gz if r is None else r * sum_gz
    if d is not None:
        gweight = gweight + d * sum_g
    scale = 1 / count if weight is None else weight / count
    scale = scale if r is None else r * scale
    return scale * sum_g, scale * sum_gz, gweight.sum(0), sum_g.sum(0)


def _plane_products(u: Tensor, v: Tensor, mean: Maybe) -> tuple[Tensor, Tensor]:
    """Sum u and u (v - mean), both (M, B, C, S), over groups, as batch norm's backward does."""
    m, b, c, s = v.shape
    zero, one = v.new_zeros(m * b * c), v.new_ones(m * b * c)
    mean = zero if mean is None else mean.unsqueeze(1).expand(m, b, c).reshape(-1)
    u, v = u.view(1, -1, s), v.view(1, -1, s)
    backward = torch.ops.aten.native_batch_norm_backward
    masks = [False, True, True]
    _, product, total = backward(u, v, one, mean, one, mean, one, False, 0.0, masks)
    return total.view(m, b, c).sum(1), product.view(m, b, c).sum(1)


def combine(
    u: Tensor,
    x: Tensor,
    mean: Maybe,
    inv: Tensor,
    r: Maybe,
    weight: Maybe,
    gbar: Maybe,
    psibar: Maybe,
) -> Tensor:
    """Return inv (weight r u - gbar - z psibar), z = (x - mean) inv."""
    rows, last = inv.shape[0], is_channels_last(x)
    v, u = split(x, rows, last), split(dense(u, x), rows, last)
    scale = inv if r is None else inv * r
    scale = scale if weight is None else scale * weight
    if psibar is None:
        gx = u * spread(scale, v)
    elif mean is None:
        gx = (v * spread(-inv * inv * psibar, v)).addcmul_(u, spread(scale, v))
    else:
        gx = (v - spread(mean, v)).mul_(spread(-inv * inv * psibar, v))
        gx.addcmul_(u, spread(scale, v))
    if gbar is not None:
        gx.sub_(spread(inv * gbar, v))
    return restore(gx, x)


def threshold_sums(x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Sum sign(x - threshold) and |x - threshold| over each group: two tensors (M, C)."""
    v = split(x, threshold.shape[0], is_channels_last(x))
    v = v - spread(threshold, v)
    sign = v.sign()
    return reduce(sign), reduce(sign.mul_(v))


def backward(
    u: Tensor,
    x: Tensor,
    mean: Maybe,
    inv: Tensor,
    r: Maybe,
    d: Maybe,
    weight: Maybe,
    a: Maybe,
    b: Maybe,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gx with gbar = a g and psibar = b psi, and the gradients of weight and bias."""
    g, psi, gweight, gbias = backward_sums(u, x, mean, inv, r, d, weight)
    gbar, psibar = g if a is None else a * g, psi if b is None else b * psi
    return combine(u, x, mean, inv, r, weight, gbar, psibar), gweight, gbias


def centre(weight: Tensor) -> Tensor:
    """Subtract from each filter (out, *) its mean."""
    return weight - weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True)

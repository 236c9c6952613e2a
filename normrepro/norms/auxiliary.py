"""EvalNorm's arithmetic: its evaluation, and the derivatives of its loss by alpha and beta.

The loss (eq. 9). For image i and a channel of it, E the running statistics, B the image's group,
    z = (x - mu^) / sigma^,  t = (x - mu_B) / sigma_B,  s = sign(z - t)
    dL/dalpha = -sum s (mu_i - mu_E) / sigma^
    dL/dbeta  = -sum s z / (2 var^) (var_i - var_E + (1 - 2 beta) (mu_i - mu_E)^2)
z - t is affine in x, so of x only its moments, sum s and sum s x per image and channel are needed.
"""

import torch
from torch import Tensor

from normrepro.norms import core

FLOOR = 1e-5  # more than the rounding of a variance; nothing depends on it


def corrected(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    alpha: Tensor | float,
    beta: Tensor | float,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Normalize each image by running statistics (C) corrected by its own (eq. 5, 6)."""
    v = core.split(x, len(x), core.is_channels_last(x)).to(core.compute_dtype(x))
    count = v[0].numel() // v.shape[2]
    mu = core.reduce(v) / count
    v = v - core.spread(mu, v)
    own, gap = core.reduce(v * v) / count, mu - mean
    scale = (beta * own + (1 - beta) * var + beta * (1 - beta) * gap.square() + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = (1 - alpha) * gap * scale
    shift = shift if bias is None else shift + bias
    return core.restore(torch.addcmul(core.spread(shift, v), v, core.spread(scale, v)), x)


def auxiliary_gradients(
    x: Tensor, group: int, mean: Tensor, var: Tensor, alpha: Tensor, beta: Tensor, eps: float
) -> Tensor:
    """Differentiate the loss, summed over a device's elements, by alpha and beta.

    Args:
        x: (N, C, *), the images of R devices one after another.
        group: Images per group.
        mean: Running mean (R, C).
        var: Running variance (R, C).
        alpha: 0-d.
        beta: 0-d.
        eps: Added to the variances.

    Returns:
        (2): the sums over the devices of both derivatives.
    """
    n = len(x)
    x = x.to(core.compute_dtype(x))
    mu, own = core.moments(x, n)
    a, b, mean, var = (t.to(mu.dtype) for t in (alpha, beta, mean, var))
    mu_b, inv_b = (by_image(t, n) for t in _group_statistics(mu, own, group, eps))
    gap, var = mu - by_image(mean, n), by_image(var, n)
    inv = (b * own + (1 - b) * var + b * (1 - b) * gap.square() + eps).rsqrt()
    # z - t = slope (x - mu_i) + offset
    slope, offset = inv - inv_b, (1 - a) * gap * inv - (mu - mu_b) * inv_b
    signs, products = sign_sums(x, mu, own, slope, offset)
    by_alpha = -(signs * gap * inv).sum()
    products = products * inv + signs * (1 - a) * gap * inv  # sum s z
    curve = own - var + (1 - 2 * b) * gap.square()
    return torch.stack([by_alpha, -0.5 * (products * inv.square() * curve).sum()])


def sign_sums(
    x: Tensor, mu: Tensor, var: Tensor, slope: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum s and s (x - mu) over each image's channels, s = sign(slope (x - mu) + offset).

    The sign changes where x - mu = -offset / slope; beyond the largest |x - mu| that a variance
    allows, it does not matter where.
    """
    count = x.numel() // mu.numel()
    reach = (1 + count**0.5) * (var + FLOOR).sqrt()
    flat, turn = slope == 0, slope.sign()
    threshold = torch.where(flat, 0, -offset / slope).clamp(-reach, reach)
    signs, sizes = core.backend(x).threshold_sums(x, mu + threshold)
    products = turn * (sizes + threshold * signs)
    return torch.where(flat, count * offset.sign(), turn * signs), products


def by_image(statistic: Tensor, images: int) -> Tensor:
    """Repeat statistics (M, C) of consecutive groups for each of the images: (N, C)."""
    return statistic.repeat_interleave(images // len(statistic), 0, output_size=images)


def _group_statistics(mu: Tensor, var: Tensor, group: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1/sigma (M, C) of the groups from those of their images."""
    mu, var = (t.view(-1, group, t.shape[1]) for t in (mu, var))
    mean = mu.mean(1)
    spread = (mu - mean.unsqueeze(1)).square().mean(1)
    return mean, (var.mean(1) + spread + eps).rsqrt()

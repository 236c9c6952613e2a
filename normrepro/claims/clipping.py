"""Limits: r and d of BRN and MABN, the maximum of CBN (10), and what is left at their ends."""

from collections.abc import Mapping

import torch

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import draw, error, gradients, mean, variance
from normrepro.norms.cbn_window import join


@check
def mabn_ends() -> Mapping[str, float]:
    """MABN with r = 1 and m = 1; without a limit; with the limit 1."""
    x = draw(8, 5, 4, shift=0.5)
    root = mean(x.square()).sqrt()
    slow = gradients(lambda v: v / mean(v.square()).sqrt(), x)
    found = {}
    for name, options in {"m_1_r_1": {"fp": "batch"}, "limit_1": {"clip": 1.0}}.items():
        own = gradients(norms.MABN(5, memory=1, eps=0, affine=False, **options).double(), x)
        found[name] = max(error(own[0], slow[0]), error(own[2], slow[2]))
    free = norms.MABN(5, memory=1, eps=0, affine=False, clip=1e12).double()
    free.running_var.copy_(1 + draw(5, seed=1).square())
    chi = free.running_var.sqrt().view(1, 5, 1).clone()
    found["no_limit_is_X_over_chi"] = error(free(x), x / chi)
    assert error(x / root, slow[0]) == 0
    return found


@check
def renorm_ends() -> Mapping[str, float]:
    """BRN with limits 1 and 0 is BN; without limits it is the moving average's output."""
    x = draw(8, 5, 4, shift=0.5)
    tight = norms.BatchRenorm(5, r_max=1, d_max=0, eps=0, affine=False).double()
    wide = norms.BatchRenorm(5, r_max=1e12, d_max=1e12, eps=0, affine=False).double()
    for layer in (tight, wide):
        layer.running_std.copy_(1 + draw(5, seed=1).square())
        layer.running_mean.copy_(draw(5, seed=2))
    mu, sigma = (v.view(1, 5, 1).clone() for v in (wide.running_mean, wide.running_std))
    own = gradients(tight, x)
    slow = gradients(lambda v: (v - mean(v)) / variance(v).sqrt(), x)
    return {
        "limits_1_and_0": max(error(own[0], slow[0]), error(own[2], slow[2])),
        "no_limits": error(wide(x), (x - mu) / sigma),
    }


@check
def renorm_limits() -> Mapping[str, float]:
    """r and d of BRN with EvalNorm's limits, read off the outputs' deviations and means."""
    layer = norms.BatchRenorm(4, group=4, r_max=2.0, d_max=1.0, eps=0.0, affine=False).double()
    r, d, clipped = [], [], []
    for step in range(40):
        x = draw(8, 4, 5, seed=step) * 2.0 ** (step % 7 - 3) + step % 5
        y = layer(x).unflatten(0, (2, 4)).transpose(1, 2).flatten(2)
        r.append(y.std(2, correction=0))
        d.append(y.mean(2).abs())
        clipped.append(((r[-1] - 0.5).abs() < 1e-9) | ((r[-1] - 2).abs() < 1e-9))
    r, d = torch.stack(r), torch.stack(d)
    return {
        "smallest_r": float(r.min()),
        "largest_r": float(r.max()),
        "largest_d": float(d.max()),
        "share_of_r_at_a_limit": float(torch.stack(clipped).double().mean()),
    }


@check
def joint_variance() -> Mapping[str, float]:
    """The variance of (10), (11) over 2e4 draws for each k, and what it is without the maximum."""
    lowest, negative, lift, wrong = 0.0, [], 0.0, 0.0
    for k in range(2, 9):
        mu, nu = draw(1, k, 20_000, seed=k), 2 * draw(1, k, 20_000, seed=9 + k).square()
        v = nu - mu.square()
        v[:, -1:] = v[:, -1:].clamp(min=0)  # the batch at hand has a true variance
        nu = v + mu.square()
        _, var, _ = join((mu[:, :-1], v[:, :-1]), (mu[:, -1:], v[:, -1:]), k)
        raised = torch.maximum(nu, mu.square()).mean(1) - mu.mean(1).square()
        plain = nu.mean(1) - mu.mean(1).square()
        wrong = max(wrong, error(var[:, 0], raised))
        lowest = min(lowest, float(var.min()))
        lift = min(lift, float((var[:, 0] - plain).min()))
        negative.append(float((plain < 0).double().mean()))
    return {
        "off_equation_11": wrong,
        "lowest_variance": lowest,
        "share_negative_without_the_maximum": sum(negative) / len(negative),
        "smallest_lift_by_the_maximum": lift,
    }

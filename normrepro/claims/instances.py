"""Batch-free layers and disturbed estimates: XBNBlock's sections 3 and 5.2."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import draw, error

FREE = {"GN": {"groups": 2}, "LN": {}, "IN": {}}
KINDS = {"GN": norms.GroupNorm, "LN": norms.LayerNorm, "IN": norms.InstanceNorm}


@check
def batch_free() -> Mapping[str, float]:
    """Training beside evaluation, and one image beside eight; BN for comparison."""
    x = draw(8, 4, 5, shift=0.5)
    modes, company = 0.0, 0.0
    for name, options in FREE.items():
        layer = KINDS[name](4, affine=False, **options).double()
        whole = layer(x)
        company = max(company, error(torch.cat([layer(image[None]) for image in x]), whole))
        modes = max(modes, float((layer.eval()(x) - whole).abs().max()))
    bn = norms.BatchNorm(4, affine=False).double()
    trained = bn(x)
    return {"modes": modes, "company": company, "BN_modes": error(bn.eval()(x), trained)}


@check
def groups_of_gn() -> Mapping[str, float]:
    """GN(1) beside LN and GN(C) beside IN, written out."""
    x = draw(3, 64, 5, shift=0.5)
    layer_norm = (x - x.mean((1, 2), keepdim=True)) / x.var(
        (1, 2), correction=0, keepdim=True
    ).sqrt()
    instance = (x - x.mean(2, keepdim=True)) / x.var(2, correction=0, keepdim=True).sqrt()
    one, every = (norms.GroupNorm(64, groups=g, eps=0, affine=False).double() for g in (1, 64))
    return {
        "GN_1_beside_LN": error(one(x), layer_norm),
        "GN_64_beside_IN": error(every(x), instance),
    }


@check
def constraint() -> Mapping[str, float]:
    """Relative change of outputs under x -> (1 + delta_c) x + e_c, for ever more groups."""
    x = draw(16, 8, 20)
    delta = 0.3 * (2 * torch.rand(2, 8, 1, generator=torch.Generator().manual_seed(0)) - 1).double()
    moved = (1 + delta[0]) * x + delta[1]
    found = {"identity": _change(x, moved)}
    for groups in (1, 2, 4, 8):
        layer = norms.GroupNorm(8, groups=groups, eps=0, affine=False).double()
        found[f"GN_{groups}"] = _change(layer(x), layer(moved))
    common = 1.3 * x + 0.2
    layer = norms.GroupNorm(8, groups=2, eps=0, affine=False).double()
    values = list(found.values())
    found["GN_2_under_a_common_change"] = _change(layer(x), layer(common))
    found["largest_rise_with_groups"] = max(b - a for a, b in pairwise(values))
    return found


def _change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm())


@check
def disturbance() -> Mapping[str, float]:
    """Change of BN's output at evaluation under noise (5) of growing size."""
    x, changes = draw(16, 8, 20), []
    plain = norms.BatchNorm(8, affine=False).double().eval()
    for size in (0.0, 0.1, 0.3, 0.5, 0.9):
        layer = norms.DisturbedBatchNorm(8, affine=False, delta=size, seed=0).double().eval()
        for own in (plain, layer):
            own.running_mean.fill_(0.5)
            own.running_var.fill_(1.5)
        changes.append(_change(plain(x), layer(x)))
    return {
        "at_0": changes[0],
        "at_0.1": changes[1],
        "at_0.9": changes[-1],
        "smallest_rise": min(b - a for a, b in pairwise(changes)),
        "smallest_variance_factor_at_0.9": float((1 + layer.delta_var).min()),
    }

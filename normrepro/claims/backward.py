"""Backward statistics: MABN (4), (5), (16), (20); BRN; CBN; the formulas that the OCR garbled."""

from collections.abc import Mapping

import torch

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import cbn, convolution, draw, error, gradients, mean, norm2, variance


@check
def bn_backward() -> Mapping[str, float]:
    """dX = (1/sigma)(dY - g - Y Psi), beside the reading of the garbled print."""
    x = draw(8, 5, shift=0.5)
    y, gy, gx = gradients(norms.BatchNorm(5, eps=0, affine=False).double(), x)
    _, _, slow = gradients(lambda v: (v - mean(v)) / variance(v).sqrt(), x)
    g, psi, sigma = mean(gy), mean(gy * y), variance(x).sqrt()
    restored = (gy - g - y * psi) / sigma
    return {
        "restored_form": max(error(gx, restored), error(slow, restored)),
        "printed_form": norm2((gy * g - psi) / sigma, slow),
    }


@check
def gradient_sums() -> Mapping[str, float]:
    """Sum dX and sum Y dX of both forms."""
    x = draw(8, 5, shift=0.5)
    y, _, gx = gradients(norms.BatchNorm(5, eps=0, affine=False).double(), x)
    own = norms.MABN(5, memory=1, fp="batch", eps=0, affine=False).double()
    z, _, gz = gradients(own, x)
    return {
        "BN_sum_dX": float(gx.sum(0).abs().max()),
        "BN_sum_Y_dX": float((y * gx).sum(0).abs().max()),
        "modified_sum_Y_dX": float((z * gz).sum(0).abs().max()),
        "modified_sum_dX": float(gz.sum(0).abs().min()),
    }


@check
def modified_backward() -> Mapping[str, float]:
    """dX = (1/chi)(dY - Y Psi) with chi the root of mean X^2, beside chi = mean X^2."""
    x = 2 * draw(8, 5, shift=0.5)
    own = norms.MABN(5, memory=1, fp="batch", eps=0, affine=False).double()
    y, gy, gx = gradients(own, x)
    square = mean(x.square())
    _, _, slow = gradients(lambda v: v / mean(v.square()).sqrt(), x)
    restored = (gy - y * mean(gy * y)) / square.sqrt()
    z = x / square
    return {
        "restored_form": max(error(gx, restored), error(slow, restored)),
        "without_the_root": norm2((gy - z * mean(gy * z)) / square, slow),
    }


@check
def renorm_backward() -> Mapping[str, float]:
    """BRN without limits: the moving scale, and the batch's own g and Psi."""
    x = draw(8, 5, shift=0.5)
    layer = norms.BatchRenorm(5, r_max=1e12, d_max=1e12, momentum=0, eps=0, affine=False).double()
    layer.running_std.copy_(1 + draw(5, seed=1).square())
    layer.running_mean.copy_(draw(5, seed=2))
    y, gy, gx = gradients(layer, x)
    z = (x - mean(x)) / variance(x).sqrt()
    wanted = (gy - mean(gy) - z * mean(gy * z)) / layer.running_std
    return {
        "dX": error(gx, wanted),
        "output": error(y, (x - layer.running_mean) / layer.running_std),
    }


@check
def mabn_backward() -> Mapping[str, float]:
    """dX = (1/chi_B)(r dY - Y Psibar), Psibar over the last m = 3 groups."""
    layer = norms.MABN(5, memory=3, affine=False, eps=0, clip=2.0, momentum=0.5).double()
    psis, worst = [], 0.0
    for step in range(6):
        x = (1 + 0.2 * step) * draw(8, 5, seed=step)
        moving = layer.running_var.sqrt().clone()
        _, gy, gx = gradients(layer, x)
        chi = mean(x.square()).sqrt()
        z, g = x / chi, gy * (chi / moving).clamp(0.5, 2)
        psis.append(mean(g * z))
        average = torch.stack(psis[-3:]).mean(0)
        worst = max(worst, error(gx, (g - z * average) / chi))
    return {"dX_over_6_steps": worst}


@check
def window_backward() -> Mapping[str, float]:
    """CBN over k = 3 batches at rest: g and Psi enter with the weight 1/k."""
    conv = convolution()
    layer = cbn(conv, 3)
    batches = [conv(draw(4, 3, 5, 4, seed=10 + s)) for s in range(3)]
    for step in range(2):
        with norms.step(layer):
            layer(conv(draw(4, 3, 5, 4, seed=10 + step)))
    images = draw(4, 3, 5, 4, seed=12)
    conv.requires_grad_(True)
    with norms.step(layer):
        x = conv(images)
        x.retain_grad()
        y = layer(x)
        gy = torch.autograd.grad(y.sin().sum(), y, retain_graph=True)[0]
        y.sin().sum().backward()
    joined = torch.cat(batches)
    sigma, z = variance(joined).sqrt(), (batches[-1] - mean(joined)) / variance(joined).sqrt()
    wanted = (gy - mean(gy) / 3 - z * mean(gy * z) / 3) / sigma
    full = (gy - mean(gy) - z * mean(gy * z)) / sigma
    return {"dX": error(x.grad, wanted), "with_the_full_weight": norm2(full, wanted)}

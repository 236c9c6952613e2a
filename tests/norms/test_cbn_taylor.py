"""CBN's claims about compensation and its limits (C-3, 4, 5, 6, 15), as exact tests."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrepro import norms
from normrepro.norms.cbn_patches import mean_patch, slope
from normrepro.norms.cbn_window import join
from tests.norms.cbn_pair import images, pair
from tests.oracles.checks import close, draw, statistics


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [(2, 1), "same", "valid"])
def test_c3_derivatives_are_the_whole_jacobian(mode: str, padding: Any) -> None:
    """Zero off the diagonal, else the mean patch, and 2 mean((x - mu) p) for the variance."""
    conv = nn.Conv2d(4, 4, (3, 2), padding=padding, dilation=(1, 2), groups=2, padding_mode=mode)
    conv, y = conv.double().requires_grad_(False), draw(3, 4, 5, 6)

    def moments(weight: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.func.functional_call(conv, {"weight": weight}, (y,))
        mu, nu = statistics(x)
        return mu, nu - mu**2

    jacobians = torch.func.jacrev(moments)(conv.weight)
    patch = mean_patch(conv, y[None], y.dtype)
    x = conv(y)
    found = slope(conv, y[None], x[None], statistics(x)[0][None], patch)[0]
    both = (patch[0].repeat_interleave(2, 0), found)
    for jacobian, own in zip(jacobians, both, strict=True):
        for o in range(4):
            close(own[o], jacobian[o, o].flatten())
        others = ~torch.eye(4, dtype=torch.bool)
        assert not jacobian[others].any()


def moved(order: int, h: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the layer makes of a group after w + h dw, and its true statistics then."""
    conv, layer = pair(order=order)
    with norms.step(layer):
        layer(conv(images(0)))
    with torch.no_grad():
        conv.weight += h * draw(*conv.weight.shape, seed=8, shift=0)
        x = conv(images(0))
        mu, v = layer.past(0, (torch.zeros(1, 1, 4).double(),) * 2, x, layer.filters(x.dtype))
    true_mu, true_nu = statistics(x)
    return mu[0, 0], v[0, 0] + mu[0, 0] ** 2, true_mu, true_nu


def test_c4_c5_compensation_errors() -> None:
    """Naive: of first order. First order: mu exact, nu off by mean((dw p)^2). Second: none."""
    steps = [2e-3, 1e-3, 5e-4, 2.5e-4]
    errors = {0: [], 1: []}
    for h in steps:
        for order in errors:
            mu, nu, true_mu, true_nu = moved(order, h)
            errors[order].append(float((true_nu - nu).abs().max()))
            if order == 1:
                close(mu, true_mu)
                dw = h * draw(4, 3, 3, 3, seed=8, shift=0)
                close(true_nu - nu, statistics(F.conv2d(images(0), dw, padding=1))[1], 1e-9)
        mu, nu, true_mu, true_nu = moved(2, h)
        close(mu, true_mu)
        close(nu, true_nu)
    ratios = {k: [a / b for a, b in pairwise(v)] for k, v in errors.items()}
    assert all(abs(r - 4) < 1e-5 for r in ratios[1])
    assert all(abs(r - 2) < 0.1 for r in ratios[0])


@pytest.mark.parametrize("k", range(2, 9))
def test_c6_c15_the_maximum_keeps_the_variance(k: int) -> None:
    """It is never negative, as it would be without; and the maximum only raises it."""
    mu, nu = draw(1, k, 20000, seed=k), 2 * draw(1, k, 20000, seed=9 + k) ** 2
    v = nu - mu**2
    own = (mu[:, -1:], v[:, -1:].clamp(min=0))
    nu = torch.cat([nu[:, :-1], own[1] + own[0] ** 2], 1)
    center, var, share = join((mu[:, :-1], v[:, :-1]), own, k)
    plain = nu.mean(1) - mu.mean(1) ** 2
    close(center[:, 0], mu.mean(1))
    close(var[:, 0], torch.maximum(nu, mu**2).mean(1) - mu.mean(1) ** 2)
    assert var.min() >= -1e-12
    assert plain.min() < 0
    assert (var[:, 0] >= plain - 1e-12).all()
    assert (share == 1 / k).all()

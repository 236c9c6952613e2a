"""CBN's window: what it joins, when it opens, how long it is, and where gradients go."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import cbn, convolution, draw, error, gradients, mean, norm2, variance
from normrepro.norms.cbn_window import usual_length


def images(step: int) -> Tensor:
    """Draw a batch of 4 images."""
    return draw(4, 3, 5, 4, seed=step)


def train(conv: nn.Module, layer: nn.Module, steps: int) -> list[Tensor]:
    """Train a convolution by SGD; return its weights and the loss after each step."""
    conv.requires_grad_(True)
    optimizer, trace = torch.optim.SGD(conv.parameters(), lr=0.05), []
    for step in range(steps):
        optimizer.zero_grad()
        with norms.step(layer):
            loss = (layer(conv(images(step))).sin().square() * draw(4, 5, 4, seed=7)).mean()
            loss.backward()
            optimizer.step()
        parts = [loss, *conv.parameters()]
        trace.append(torch.cat([v.detach().flatten().clone() for v in parts]))
    return trace


@check
def window_of_one() -> Mapping[str, float]:
    """K = 1 beside BN: outputs, gradients, and 6 steps of training."""
    x = images(0)[:, :1].expand(4, 4, 5, 4)
    plain = norms.BatchNorm(4, eps=0, affine=False).double()
    own, slow = (
        gradients(norms.CBN(4, window=1, eps=0, affine=False).double(), x),
        gradients(plain, x),
    )
    one, other = convolution(), convolution()
    traces = zip(train(one, cbn(one, 1), 6), train(other, plain, 6), strict=True)
    return {
        "output_and_dX": max(error(own[0], slow[0]), error(own[2], slow[2])),
        "training": max(error(a, b) for a, b in traces),
    }


@check
def burn_in() -> Mapping[str, float]:
    """Weights and losses beside BN's, step by step, with a burn-in of 4 steps and k = 3."""
    one, other = convolution(), convolution()
    plain = norms.BatchNorm(4, eps=0, affine=False).double()
    pairs = zip(train(one, cbn(one, 3, burn_in=4), 7), train(other, plain, 7), strict=True)
    apart = [error(a, b) for a, b in pairs]
    return {
        "in_burn_in": max(apart[:4]),
        "steps_equal_to_BN": sum(a < 1e-12 for a in apart),
        "afterwards": apart[-1],
    }


@check
def pooled() -> Mapping[str, float]:
    """k = 3 batches at rest beside BN of the 12 images joined."""
    conv = convolution()
    found = {}
    for order in (0, 1, 2):
        layer = cbn(conv, 3, order)
        for step in range(3):
            with norms.step(layer):
                y = layer(conv(images(step)))
        x = conv(torch.cat([images(s) for s in range(3)]))
        wanted = ((x - mean(x)) / variance(x).sqrt())[-4:]
        found[f"order_{order}"] = error(y, wanted)
    return found


@check
def window_rule() -> Mapping[str, float]:
    """K and the effective examples by the paper's rule."""
    found = {}
    for size in (32, 16, 8, 4, 2, 1):
        found[f"k_at_{size}"] = usual_length(size)
    return found | {"examples_at_2": 2 * usual_length(2), "examples_at_1": usual_length(1)}


@check
def equal_by_construction() -> Mapping[str, float]:
    """K at a batch of 32, where Table 2 has CBN beside BN."""
    return {"k_at_32": usual_length(32)}


@check
def gradient_of_the_compensation() -> Mapping[str, float]:
    """dL/dW with theta_t in (theta_t - theta_s) as a constant, and differentiated."""
    found = {}
    for k in (1, 2):
        conv = convolution()
        layer, old = cbn(conv, k), convolution().weight
        with norms.step(layer):
            layer(conv(images(0)))
        conv.weight += 0.1 * draw(*old.shape, seed=5)
        conv.requires_grad_(True)
        (own,) = torch.autograd.grad(layer(conv(images(1))).sin().sum(), conv.weight)
        constant, through = (_slow_gradient(conv, old, k, t) for t in (False, True))
        found[f"layer_beside_constant_at_k_{k}"] = error(own, constant)
        found[f"differentiated_at_k_{k}"] = norm2(through, constant)
    return found


def _slow_gradient(conv: nn.Conv2d, old: Tensor, k: int, through: bool) -> Tensor:
    """Differentiate CBN's output, written out for order 1 and up to two batches."""
    weight, bias = conv.weight.detach().clone().requires_grad_(), conv.bias.detach()
    x = F.conv2d(images(1), weight, bias, padding=1)
    mu, nu = mean(x), mean(x.square())
    if k == 2:
        past = F.conv2d(images(0), old, bias, padding=1)
        now = weight if through else weight.detach()
        change = F.conv2d(images(0), now - old, padding=1)
        first = mean(past) + mean(change)
        second = torch.maximum(mean(past.square()) + 2 * mean(past * change), first.square())
        mu, nu = (mu + first) / 2, (nu + second) / 2
    y = (x - mu) / (nu - mu.square()).sqrt()
    return torch.autograd.grad(y.sin().sum(), weight)[0]


@check
def single_values() -> Mapping[str, float]:
    """BN of one image without space: a constant output, no gradient; with space it is IN."""
    x = draw(1, 4).requires_grad_()
    y = (x - x.mean(0)) / ((x - x.mean(0)).square().mean(0) + 1e-5).sqrt()
    (gx,) = torch.autograd.grad(y.sin().sum(), x)
    z = images(0)
    refused = 0.0
    try:
        norms.BatchNorm(4).double()(draw(1, 4))
    except ValueError:
        refused = 1.0
    own = norms.BatchNorm(3, group=1).double()(z)
    return {
        "output": float(y.detach().abs().max()),
        "dX": float(gx.abs().max()),
        "our_layer_refuses": refused,
        "with_space_beside_IN": error(own, F.instance_norm(z)),
    }

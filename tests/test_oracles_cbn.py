"""The CBN references under test: Jacobians and autograd on the whole history, exact identities."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import oracles
from tests.oracles.checks import broadcast, close, draw, prepared, statistics
from tests.oracles.layout import mean

PADDED = {"padding": 1, "groups": 2}
WEIGHTS, INPUTS = (4, 1, 3, 3), (8, 2, 3, 4)


def padded_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, **PADDED)


def build(kind: type = oracles.CBN, **options: Any) -> Any:
    defaults = {"conv": oracles.Conv(**PADDED), "window": 3, "group": 4}
    return prepared(kind(4, **(defaults | options)))


def at(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, weight, bias and output gradient of a step; the weights wander."""
    drift = 0.1 * step
    weight = draw(*WEIGHTS, seed=1) + drift * draw(*WEIGHTS, seed=2)
    return (
        draw(*INPUTS, seed=100 + step),
        weight,
        draw(4, seed=3) + drift * draw(4, seed=4),
        draw(8, 4, 3, 4, seed=200 + step),
    )


def compensated(past: tuple[Tensor, ...], now: tuple[Tensor, ...], order: int) -> Any:
    """A past group's statistics under the present weights, by the Jacobian of their function."""
    x, *old = past
    if order == 2:
        return statistics(padded_conv(x, *now))
    steps = [n - o for n, o in zip(now, old, strict=True)]

    def functional(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return statistics(padded_conv(x, weight, bias))

    moved = list(functional(*old))
    for i, jacobians in enumerate(torch.func.jacrev(functional, argnums=(0, 1))(*old)):
        for jacobian, step in zip(jacobians, steps, strict=True):
            moved[i] = moved[i] + order * jacobian.flatten(1) @ step.flatten()
    return moved


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("window", [1, 3])
def test_paper_form_is_autograds(order: int, window: int) -> None:
    """Two groups a step, burn-in of two, against the stop-gradient form on the whole history."""
    oracle = build(window=window, order=order, burn_in=2)
    history: list[tuple[Tensor, ...]] = []
    for step in range(6):
        x, weight, bias, gz = at(step)
        now = (weight, bias)
        y = oracle.forward(x, *now)
        gx, *_ = oracle.backward(gz)
        leaves = [v.clone().requires_grad_() for v in (x, *now)]
        outs = []
        for k in range(2):
            part = padded_conv(leaves[0][4 * k : 4 * k + 4], *leaves[1:])
            past = history[::-1][: window - 1] if step >= 2 else []
            pairs = [statistics(part), *(compensated(p, now, order) for p in past)]
            mu = sum(m for m, _ in pairs) / len(pairs)
            nu = sum(n.clamp(min=m.square()) for m, n in pairs) / len(pairs)
            if step >= 2:
                history.append((x[4 * k : 4 * k + 4], *now))
            sigma = (nu - mu**2 + 1e-5).sqrt()
            outs.append((part - broadcast(mu, part)) / broadcast(sigma, part))
        z = broadcast(oracle.gamma, gz) * torch.cat(outs) + broadcast(oracle.beta, gz)
        close(y, z.detach(), 1e-11)
        *wanted, gbias = torch.autograd.grad(z, leaves, gz)
        *got, gb = oracle.conv_backward(gx)
        for actual, expected in zip(got, wanted, strict=True):
            close(actual, expected, 1e-11)
        torch.testing.assert_close(gb, gbias, rtol=0, atol=1e-11)  # zero but for past groups
        oracle.commit()


@pytest.mark.parametrize("burn_in", [0, 4])
def test_window_of_one_and_burn_in_are_batch_norm(burn_in: int) -> None:
    """C-1, C-2, C-12: outputs, gradients, running statistics and evaluation."""
    oracle = build(window=3 if burn_in else 1, burn_in=burn_in)
    plain = prepared(oracles.BatchNorm(4, group=4))
    for step in range(4):
        x, weight, bias, gz = at(step)
        out = padded_conv(x, weight, bias)
        close(oracle.forward(x, weight, bias), plain.forward(out))
        close(oracle.backward(gz)[0], plain.backward(gz)[0])
        oracle.commit()
        plain.commit()
        close(oracle.evaluate(out), plain.evaluate(out))


def test_resting_weights_pool_the_batches() -> None:
    """C-7 and C-8: BN of the joined batches, whose gradient statistics enter with weight 1/k."""
    oracle = build(group=8, window=3)
    _, weight, bias, gz = at(0)
    xs = [draw(*INPUTS, seed=i) for i in range(3)]
    for x in xs:
        y = oracle.forward(x, weight, bias)
        gx, *_ = oracle.backward(gz)
        oracle.commit()
    joined = prepared(oracles.BatchNorm(4))
    close(y, joined.forward(padded_conv(torch.cat(xs), weight, bias))[-8:])
    g = oracle.gamma[:, None] * gz.transpose(0, 1).flatten(1)
    xhat, sigma = joined.kept[0]["xhat"][:, -g.shape[1] :], joined.kept[0]["sigma"]
    wanted = (g - mean(g) / 3 - xhat * mean(g * xhat) / 3) / sigma
    close(gx.transpose(0, 1).flatten(1), wanted, 1e-11)


def test_compensation_is_exact_for_mu_and_of_second_order_for_nu() -> None:
    """C-4, C-5, and Euler's form without stored weights: mu = <pbar, w>, nu ~ <G, w> - nu_old."""
    x, weight, _, _ = at(0)
    delta = draw(*WEIGHTS, seed=8)
    for h in (0.1, 0.05):
        first, exact = build(order=1, group=8), build(order=2, group=8)
        for oracle in (first, exact):
            oracle.forward(x, weight)
            oracle.commit()
            oracle.weight = weight + h * delta
        past = first.old[0][0]
        mu, nu = first.moved(past)
        true_mu, true_nu = exact.moved(past)
        close(mu, true_mu)
        rest = statistics(padded_conv(x, h * delta, None))[1]
        close(true_nu - nu, rest[:, None], 1e-11)
        flat = first.weight.flatten(1)
        close((past.dmu * flat).sum(1, keepdim=True), mu)
        close((past.dnu * flat).sum(1, keepdim=True) - past.nu, nu)


@pytest.mark.parametrize("burn_in", [0, 3])
def test_official_form_is_autograds(burn_in: int) -> None:
    """Dropped slices, eps outside the root, unbiased burn-in, biases left alone."""
    oracle = build(oracles.OfficialCBN, group=8, burn_in=burn_in)
    history: list[tuple[Tensor, ...]] = []
    dropped = False
    for step in range(6):
        x, weight, bias, gz = at(step)
        weight = draw(*WEIGHTS, seed=step) * (1 + 3 * (step % 2))
        y = oracle.forward(x, weight, bias)
        gx, *_ = oracle.backward(gz)
        out = padded_conv(x, weight, bias).requires_grad_()
        mu, nu = statistics(out)
        var = out.transpose(0, 1).flatten(1).var(1)
        if step >= burn_in:
            pairs = [(mu, nu)]
            for past_x, past_w, past_b in history[::-1][:2]:
                now = (weight, past_b)
                pairs.append(compensated((past_x, past_w, past_b), now, 1))
            mus, nus = (torch.stack(v) for v in zip(*pairs, strict=True))
            valid = nus >= mus**2
            dropped = dropped or not bool(valid.all())
            mu = (mus * valid).sum(0) / valid.sum(0)
            var = (nus * valid).sum(0) / valid.sum(0) - mu**2
            history.append((x, weight, bias))
        divisor = broadcast(var.sqrt() + 1e-5, out)
        z = (out - broadcast(mu, out)) / divisor
        z = broadcast(oracle.gamma, out) * z + broadcast(oracle.beta, out)
        close(y, z.detach(), 1e-11)
        close(gx, torch.autograd.grad(z, out, gz)[0], 1e-10)
        oracle.commit()
    assert dropped or burn_in


def test_maximum_keeps_the_variance_from_falling_below_zero() -> None:
    """C-6 and C-15: it only ever raises nu, and without it negative variances occur."""
    oracle = build()
    mu = [draw(2000, 1, seed=i) for i in range(4)]
    nu = [2 * draw(2000, 1, seed=10 + i) ** 2 for i in range(4)]
    center, var, _ = oracle.joined(mu, nu)
    assert var.min() >= -1e-12
    plain = sum(nu) / 4 - center**2
    assert (plain <= var + 1e-12).all()
    assert plain.min() < 0

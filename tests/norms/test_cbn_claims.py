"""CBN's claims about whole training steps (C-1, 2, 7, 8, 9, 10, 12, 14), as exact tests."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrepro import norms
from normrepro.norms.cbn_window import usual_length
from tests.norms.cbn_pair import images, move, pair
from tests.oracles.checks import broadcast, close, draw, statistics


def train(conv: nn.Module, layer: nn.Module, steps: int) -> list[Tensor]:
    """Train both; returns the weights and the loss after each step."""
    optimizer = torch.optim.SGD([*conv.parameters(), *layer.parameters()], lr=0.05)
    trace = []
    for step in range(steps):
        optimizer.zero_grad()
        with norms.step(layer):
            loss = layer(conv(images(step))).sin().square().mean()
            loss.backward()
            optimizer.step()
        found = [loss, *conv.parameters(), *layer.parameters()]
        trace.append(torch.cat([v.detach().flatten().clone() for v in found]))
    return trace


@pytest.mark.parametrize("options", [{"window": 1}, {"burn_in": 4}])
def test_c1_c2_a_window_of_one_and_burn_in_are_batch_norm(options: dict[str, int]) -> None:
    conv, layer = pair(**options)
    other, _ = pair()
    plain = norms.BatchNorm(4).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in plain.state_dict()})
    found, expected = train(conv, layer, 6), train(other, plain, 6)
    for step, (one, two) in enumerate(zip(found, expected, strict=True)):
        # The step after the burn-in joins its own group alone; its window opens one later.
        if step < 5 or "window" in options:
            close(one, two)
        else:
            assert float((one - two).abs().max()) > 1e-6
    if "window" in options:
        close(layer.running_var, plain.running_var)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_c7_c8_resting_weights_pool_the_batches(order: int) -> None:
    """BN of the joined batches; the gradient is BN's with backward statistics weighted 1/k."""
    conv, layer = pair(order=order)
    for step in range(3):
        with norms.step(layer):
            x = conv(images(step))
            y = layer(x)
    gz = draw(*y.shape, seed=5)
    (gx,) = torch.autograd.grad(y, x, gz)
    joined = conv(torch.cat([images(s) for s in range(3)])).detach()
    close(
        y.detach(), F.batch_norm(joined, None, None, layer.weight, layer.bias, True)[-4:].detach()
    )
    mu, nu = statistics(joined)
    sigma = broadcast((nu - mu**2 + 1e-5).sqrt(), x)
    z = ((x - broadcast(mu, x)) / sigma).detach()
    g = gz * broadcast(layer.weight, x).detach()
    sums = (broadcast(statistics(v)[0], x) / 3 for v in (g, g * z))
    close(gx, (g - next(sums) - z * next(sums)) / sigma, 1e-11)


def test_c9_rule_for_the_window() -> None:
    lengths = {b: usual_length(b) for b in (32, 16, 8, 4, 2, 1)}
    assert lengths == {32: 1, 16: 1, 8: 2, 4: 4, 2: 8, 1: 8}
    for group, k in lengths.items():
        conv, layer = pair(window=None, group=group)
        for step in range(2):
            with norms.step(layer):
                layer(conv(images(step, 32)))
        assert (layer.ring_length() or 0) == k - 1


@pytest.mark.parametrize("window", [1, 2])
def test_c10_no_gradient_goes_through_the_compensation(window: int) -> None:
    """With the term theta_t - theta_s differentiated, the gradient is another iff k > 1."""
    conv, layer = pair(window=window)
    old, past = (conv.weight.detach().clone(), conv.bias.detach().clone()), images(0)
    with norms.step(layer):
        layer(conv(past))
    move(conv, 1)
    y, gz = layer(conv(images(1))), draw(4, 4, 5, 4, seed=3)
    got = torch.autograd.grad(y, conv.weight, gz)[0]
    gradients = []
    for through in (False, True):
        now = [p.detach().clone().requires_grad_() for p in conv.parameters()]
        x = F.conv2d(images(1), *now, padding=1)
        entries = [statistics(x)]
        if window > 1:
            delta = [n - o for n, o in zip(now, old, strict=True)]
            delta = delta if through else [d.detach() for d in delta]
            entries.append(taylor(past, old, delta))
        mu = sum(m for m, _ in entries) / window
        nu = sum(torch.maximum(n, m**2) for m, n in entries) / window
        z = (x - broadcast(mu, x)) / broadcast((nu - mu**2 + 1e-5).sqrt(), x)
        z = z * broadcast(layer.weight, x) + broadcast(layer.bias, x)
        close(y.detach(), z.detach(), 1e-11)
        gradients.append(torch.autograd.grad(z, now[0], gz)[0])
    close(got, gradients[0], 1e-11)
    assert bool((got - gradients[1]).abs().max() > 1e-3) == (window > 1)


def taylor(y: Tensor, old: tuple[Tensor, ...], delta: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Statistics at old parameters and their first-order change, which may carry gradients."""

    def functional(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        return statistics(F.conv2d(y, *parameters, padding=1))

    jacobians = torch.func.jacrev(functional, argnums=(0, 1))(*old)
    moved = []
    for value, parts in zip(functional(*old), jacobians, strict=True):
        change = (j.flatten(1) @ d.flatten() for j, d in zip(parts, delta, strict=True))
        moved.append(value + sum(change))
    return moved[0], moved[1]


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_c12_inference_is_batch_norms(variant: str) -> None:
    conv, layer = pair(variant=variant, eps_outside=False)
    train(conv, layer, 5)
    x = conv(images(9)).detach()
    state = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    close(layer.eval()(x).detach(), F.batch_norm(x, *state).detach())


def test_c14_one_image_is_instance_norm_and_a_single_value_is_refused() -> None:
    conv, layer = pair(group=1, burn_in=9)
    x = conv(images(0)).detach()
    close(layer(x).detach(), F.instance_norm(x, None, None, layer.weight, layer.bias).detach())
    with pytest.raises(ValueError, match=r"batch\.norm"):
        layer(x[:, :, :1, :1])

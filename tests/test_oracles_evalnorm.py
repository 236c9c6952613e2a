"""The EvalNorm reference under test: autograd of its loss, its limits, its exact identities."""

import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.oracles.checks import SHAPES, advance, broadcast, close, draw, moments, prepared


def build(group: int = 2, replicas: int = 1, rate: float = 0.5) -> oracles.EvalNorm:
    return prepared(oracles.EvalNorm(4, group=group, replicas=replicas, rate=rate, momentum=0.4))


def corrected(x: Tensor, a: Tensor, b: Tensor, mu: Tensor, var: Tensor) -> Tensor:
    """z^ of eqs. 5 and 6; mu and var are the EMA's, broadcast against x."""
    own_mu, own_var = moments(x, 1)
    center = a * own_mu + (1 - a) * mu
    spread = b * own_var + (1 - b) * var + b * (1 - b) * (own_mu - mu) ** 2
    return (x - center) / (spread + 1e-5).sqrt()


def auxiliary(x: Tensor, a: Tensor, b: Tensor, oracle: oracles.EvalNorm, device: int) -> Tensor:
    """Mean of |target - z^| over a device's images, by the EMA as it is now (eq. 9)."""
    mu, var = moments(x, 2)
    ema = oracle.running_mean[device], oracle.running_var[device]
    z = corrected(x, a, b, *(broadcast(state, x) for state in ema))
    return ((x - mu) / (var + 1e-5).sqrt() - z).abs().mean()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("replicas", [1, 2])
def test_alpha_and_beta_follow_autograd(shape: tuple[int, ...], replicas: int) -> None:
    """Each step: the EMA after its update, mean over elements and devices, plain SGD."""
    oracle = build(replicas=replicas)
    assert oracle.a == oracle.b == 0.25
    a = b = torch.tensor(0.25, dtype=torch.float64)
    for step in range(5):
        x = draw(*shape, seed=step, shift=0.3 * step)
        advance(oracle, x, x)
        leaves = [v.clone().requires_grad_() for v in (a, b)]
        parts = list(enumerate(x.chunk(replicas)))
        loss = sum(auxiliary(part, *leaves, oracle, device) for device, part in parts) / replicas
        gradients = torch.autograd.grad(loss, leaves)
        a, b = ((v - 0.5 * g).clamp(0, 1) for v, g in zip((a, b), gradients, strict=True))
        close(oracle.a, a)
        close(oracle.b, b)
        for device, part in parts:
            close(oracle.device_gradients(device)[2], auxiliary(part, a, b, oracle, device))


def test_alpha_and_beta_stay_between_zero_and_one() -> None:
    seen = set()
    for sign in (1e3, -1e3):
        oracle = build(rate=sign)
        x = draw(8, 4, 3)
        advance(oracle, x, x)
        seen |= {float(oracle.a), float(oracle.b)}
    assert seen == {0.0, 1.0}


def test_training_is_batch_norm() -> None:
    """E-8: outputs, gradients and running statistics do not feel the auxiliary loss."""
    oracle, plain = build(), prepared(oracles.BatchNorm(4, group=2, momentum=0.4))
    for step in range(3):
        x, gz = draw(8, 4, 3, seed=step), draw(8, 4, 3, seed=step + 50)
        assert oracle.forward(x).equal(plain.forward(x))
        for one, other in zip(oracle.backward(gz), plain.backward(gz), strict=True):
            assert one.equal(other)
        oracle.commit()
        plain.commit()
        assert oracle.buffers()["running_var"].equal(plain.buffers()["running_var"])
    assert oracle.a != 0.25


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_is_autograds(shape: tuple[int, ...]) -> None:
    oracle = build()
    advance(oracle, draw(*shape), draw(*shape))
    oracle.a, oracle.b = torch.tensor([0.3, 0.6], dtype=torch.float64)
    x, gz = draw(*shape, seed=1).requires_grad_(), draw(*shape, seed=2)
    ema = oracle.running_mean[0], oracle.running_var[0]
    z = corrected(x, oracle.a, oracle.b, *(broadcast(state, x) for state in ema))
    y = broadcast(oracle.gamma, x) * z + broadcast(oracle.beta, x)
    close(oracle.evaluate(x.detach()), y.detach())
    close(oracle.evaluate_backward(gz)[0], torch.autograd.grad(y, x, gz)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_limits(shape: tuple[int, ...]) -> None:
    """E-2, E-3: (0, 0) is EMA evaluation, (1, 1) is instance norm."""
    oracle, plain = build(), prepared(oracles.BatchNorm(4, group=2, momentum=0.4))
    for step in range(2):
        advance(oracle, draw(*shape, seed=step), draw(*shape, seed=9))
        advance(plain, draw(*shape, seed=step), draw(*shape, seed=9))
    x, gz = draw(*shape, seed=3), draw(*shape, seed=4)
    limits = {0.0: plain, 1.0: prepared(oracles.InstanceNorm(4))}
    for value, other in limits.items():
        oracle.a = oracle.b = torch.tensor(value).double()
        close(oracle.evaluate(x), other.evaluate(x))
        close(oracle.evaluate_backward(gz)[0], other.evaluate_backward(gz)[0])


def test_evaluation_does_not_look_across_the_batch() -> None:
    """E-9."""
    oracle = build()
    x = draw(8, 4, 3)
    advance(oracle, x, x)
    whole = oracle.evaluate(x)
    single = torch.cat([oracle.evaluate(image[None]) for image in x])
    assert whole.equal(single)


def test_statistics_split_exactly_at_one_over_b() -> None:
    """E-1: mu_B and var_B from one image and the rest, a = b = 1/B."""
    for size in (2, 3, 5):
        x = draw(size, 4, 3)
        oracle = oracles.EvalNorm(4, group=size)
        rest = x[1:].transpose(0, 1).flatten(1)
        oracle.running_mean, oracle.running_var = [rest.mean(1)], [rest.var(1, correction=0)]
        oracle.a = oracle.b = torch.tensor(1 / size, dtype=torch.float64)
        mu, var = moments(x, size)
        close(oracle.evaluate(x[:1]), ((x - mu) / (var + 1e-5).sqrt())[:1])

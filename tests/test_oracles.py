"""The references under test: against torch and against autograd.

A reference that is wrong would prove nothing, so each is compared with evidence that it did not
produce: torch's own layers, and autograd through the stop-gradient form of the equations. MABN and
the identities between the methods have their own files.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import oracles
from tests.oracles.checks import (
    SHAPES,
    broadcast,
    close,
    differentiate,
    draw,
    moments,
    prepared,
    same,
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("replicas", [1, 2])
def test_batch_norm_is_torchs_on_every_group(shape: tuple[int, ...], replicas: int) -> None:
    oracle = prepared(oracles.BatchNorm(4, group=2, replicas=replicas))
    x, gz = draw(*shape, seed=1), draw(*shape, seed=2)

    def torchs(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        parts = [F.batch_norm(p, None, None, gamma, beta, training=True) for p in x.split(2)]
        return torch.cat(parts)

    same(oracle, x, gz, differentiate(torchs, oracle, x, gz))


@pytest.mark.parametrize("joined", [1, 2, 4])
def test_batch_norm_running_statistics_are_torchs(joined: int) -> None:
    """Four devices of two images, `joined` of them sharing: torch's layer on the joined batch."""
    oracle = oracles.BatchNorm(4, group=2 * joined, replicas=4)
    layers = [torch.nn.BatchNorm2d(4, affine=False).double() for _ in range(4 // joined)]
    for step in range(3):
        x = draw(8, 4, 3, 2, seed=step)
        expected = torch.cat(
            [layer(part) for layer, part in zip(layers, x.split(2 * joined), strict=True)]
        )
        close(oracle.forward(x), expected)
        oracle.commit()
    state = oracle.buffers()
    for name in ("running_mean", "running_var"):
        wanted = torch.stack([layer.get_buffer(name) for layer in layers for _ in range(joined)])
        close(state[name], wanted)
    assert state["num_batches_tracked"] == 3
    x = draw(8, 4, 3, 2, seed=9)
    close(oracle.evaluate(x), layers[0].eval()(x))


def test_batch_norm_moves_its_state_by_the_mean_over_groups() -> None:
    oracle = oracles.BatchNorm(3, group=2, momentum=0.3)
    x = draw(6, 3)
    oracle.forward(x)
    oracle.commit()
    variances = torch.stack([part.var(0) for part in x.split(2)])
    close(oracle.buffers()["running_var"], 0.7 + 0.3 * variances.mean(0))
    close(oracle.buffers()["running_mean"], 0.3 * x.mean(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_batch_norm_is_torchs_evaluation(shape: tuple[int, ...]) -> None:
    oracle = prepared(oracles.FrozenBatchNorm(4))
    oracle.running_mean, oracle.running_var = [draw(4)], [draw(4, seed=3).abs() + 0.1]
    x, gz = draw(*shape, seed=1), draw(*shape, seed=2)

    def torchs(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.batch_norm(x, oracle.running_mean[0], oracle.running_var[0], gamma, beta)

    expected = differentiate(torchs, oracle, x, gz)
    same(oracle, x, gz, expected)
    close(oracle.evaluate(x), expected[0])
    for actual, wanted in zip(oracle.evaluate_backward(gz), expected[1:], strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ema", ["std", "var"])
def test_batch_renorm_is_its_stop_gradient_form(shape: tuple[int, ...], ema: str) -> None:
    limits = oracles.constant_limits(1.2, 0.3)
    oracle = prepared(oracles.BatchRenorm(4, group=2, momentum=0.4, limits=limits, ema=ema))
    clipped = []
    for step in range(4):
        x, gz = draw(*shape, seed=step, shift=0.4 * step), draw(*shape, seed=step + 50)
        center, scale = (broadcast(state, x) for state in oracle.population(0))
        mu, var = moments(x, 2)
        r, d = (var + 1e-5).sqrt() / scale, (mu - center) / scale
        clipped.append(r.gt(1.2).any() and r.lt(1.2).any() and d.gt(0.3).any() and d.lt(0.3).any())
        r, d = r.clamp(1 / 1.2, 1.2), d.clamp(-0.3, 0.3)

        def stopped(x: Tensor, gamma: Tensor, beta: Tensor, r: Tensor = r, d: Tensor = d) -> Tensor:
            mu, var = moments(x, 2)
            xhat = (x - mu) / (var + 1e-5).sqrt() * r + d
            return broadcast(gamma, x) * xhat + broadcast(beta, x)

        same(oracle, x, gz, differentiate(stopped, oracle, x, gz))
        oracle.commit()
    assert any(clipped)


def test_ioffe_limits_at_the_corners() -> None:
    limits = oracles.ramped_limits()
    table = {0: (1, 0), 5000: (1, 0), 15000: (11 / 7, 2.5), 25000: (15 / 7, 5), 40000: (3, 5)}
    for step, wanted in table.items():
        assert limits(step) == pytest.approx(wanted)
    assert limits(90000) == pytest.approx((3, 5))
    fractions = oracles.ramped_limits(points=(0.05, 0.4, 0.25), run=200)
    assert fractions(30) == pytest.approx((11 / 7, 2.5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 2])
def test_group_norm_is_torchs(shape: tuple[int, ...], groups: int) -> None:
    oracle = prepared(oracles.GroupNorm(4, groups))
    x, gz = draw(*shape, seed=1), draw(*shape, seed=2)

    def torchs(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.group_norm(x, groups, gamma, beta)

    same(oracle, x, gz, differentiate(torchs, oracle, x, gz))


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_instance_norm_is_torchs(shape: tuple[int, ...]) -> None:
    oracle = prepared(oracles.InstanceNorm(4))
    x, gz = draw(*shape, seed=1), draw(*shape, seed=2)

    def torchs(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.instance_norm(x, weight=gamma, bias=beta)

    same(oracle, x, gz, differentiate(torchs, oracle, x, gz))

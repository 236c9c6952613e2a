"""Frozen batch norm beside its reference."""

import pytest
import torch

from normrepro import norms
from tests import oracles
from tests.norms.cases import Layout
from tests.norms.test_compared import each_layout, shape
from tests.norms.test_exact import batch, change_affine, compare, evaluate, run
from tests.oracles.checks import broadcast, close, draw


@each_layout
def test_frozen_batch_norm_is_its_reference(layout: Layout) -> None:
    layer = norms.FrozenBatchNorm(layout.shape[1], **shape(layout)).double()
    oracle = oracles.FrozenBatchNorm(layout.shape[1], replicas=layout.replicas)
    for i, name in enumerate(("running_mean", "running_var")):
        state = [draw(oracle.channels, seed=r + 5 * i).square() for r in range(layout.replicas)]
        setattr(oracle, name, state)
        layer.get_buffer(name).copy_(oracle.packed(state))
    for step in range(3):
        change_affine(layer, oracle, step)
        x, gz = batch(layout, step)
        with norms.step(layer):
            got = run(layer, x, gz)
        compare(layer, oracle, got, (oracle.forward(x), *oracle.backward(gz)))
        evaluate(layer, oracle, layout)


def test_frozen_batch_norm_freezes_gamma_and_beta_if_told() -> None:
    layer = norms.FrozenBatchNorm(3, train_affine=False)
    x = draw(2, 3, 4).float().requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    close(x.grad, broadcast((1 + 1e-5) ** -0.5 * torch.ones(3), x).expand_as(x), 1e-6)
    assert layer(x[:0]).shape == (0, 3, 4)
    with pytest.raises(ValueError, match="3 images do not divide over 2 replicas"):
        norms.FrozenBatchNorm(3, replicas=2)(draw(3, 3).float())
    plain = norms.BatchNorm(3)
    plain(x)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer(x), plain.eval()(x))

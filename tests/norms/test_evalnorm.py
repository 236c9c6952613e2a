"""EvalNorm: its reference over many steps, what it must not touch, offline estimation."""

from typing import Any

import pytest
import torch
from torch import nn

from normrepro import norms
from normrepro.norms import eager, kernels
from tests import oracles
from tests.norms.cases import LAYOUTS, STEPS, Layout
from tests.norms.test_exact import batch, change_affine, compare, run, start_at
from tests.oracles.checks import close, draw

IDS = [f"{'x'.join(map(str, w.shape))}-R{w.replicas}-B{w.group}" for w in LAYOUTS]
FAST = {"lr": 0.2, "momentum": 0.4}


def build(layout: Layout, **options: Any) -> nn.Module:
    shape = {"group": layout.group, "replicas": layout.replicas}
    return norms.EvalNorm(layout.shape[1], **shape, **FAST, **options).double()


def reference(layout: Layout, unbiased: bool = True) -> oracles.EvalNorm:
    group = layout.group or layout.shape[0] // layout.replicas
    shape = {"group": group, "replicas": layout.replicas}
    return oracles.EvalNorm(layout.shape[1], **shape, rate=0.2, momentum=0.4, unbiased=unbiased)


def agree(layer: nn.Module, oracle: Any, got: tuple, wanted: tuple) -> None:
    """Outputs, gradients, and every buffer."""
    own = {"alpha": oracle.a, "beta": oracle.b}
    oracle.buffers = lambda: own | oracles.BatchNorm.buffers(oracle)
    compare(layer, oracle, got, wanted)


@pytest.mark.parametrize("options", [{}, {"unbiased": False}, {"keep_inputs": False}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_layer_is_its_reference_over_many_steps(layout: Layout, options: dict[str, bool]) -> None:
    layer = build(layout, **options)
    oracle = reference(layout, options.get("unbiased", True))
    start_at(layer, oracle, 0)
    moved = set()
    for step in range(STEPS):
        x, gz = batch(layout, step)
        change_affine(layer, oracle, step)
        with norms.step(layer, scale=4.0) as s:
            got = run(layer, x, 4 * gz)
            if step % 11 == 6:
                s.skip()
        wanted = oracle.forward(x), *oracle.backward(4 * gz)
        if step % 11 != 6:
            oracle.commit()
        agree(layer, oracle, got, wanted)
        moved.add(float(layer.alpha))
        layer.eval()
        x, gz = (v[:3] for v in batch(layout, 77))
        agree(layer, oracle, run(layer, x, gz), (oracle.evaluate(x), *oracle.evaluate_backward(gz)))
        layer.train()
        if step == STEPS // 2:
            state, layer = layer.state_dict(), build(layout, **options)
            layer.load_state_dict(state)
    assert len(moved) > (STEPS // 3 if layout.group != 1 else 0)


def test_training_is_batch_norm_to_the_bit() -> None:
    """E-8: with and without the loss, the same outputs, gradients, weights and statistics."""
    plain, other = (nets(kind) for kind in (norms.BatchNorm, norms.EvalNorm))
    other.load_state_dict(plain.state_dict())
    layer = other[1]
    for step in range(5):
        x = draw(8, 3, 4, 4, seed=step).float()
        for net in (plain, other):
            net.zero_grad()
            with norms.step(net):
                net(x).square().mean().backward()
        for one, two in zip(plain.parameters(), other.parameters(), strict=True):
            assert torch.equal(one.grad, two.grad)
            with torch.no_grad():
                one -= 0.1 * one.grad
                two -= 0.1 * two.grad
        assert torch.equal(plain[1].running_var, layer.running_var)
    assert layer.alpha != 0.25
    assert layer.beta != 0.25
    assert layer.alpha.grad is layer.beta.grad is None
    assert {"1.alpha", "1.beta"} == other.state_dict().keys() - plain.state_dict().keys()


def nets(kind: Any, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), kind(4, group=2, **options), nn.ReLU())


@pytest.mark.parametrize("replicas", [1, 2])
def test_calls_and_accumulation_are_one_batch(replicas: int) -> None:
    """Two calls of a step give the state of one call with both batches' images."""
    one, two = (norms.EvalNorm(4, 2, replicas, lr=0.5).double() for _ in range(2))
    for step in range(4):
        halves = draw(8, 4, 3, seed=2 * step), draw(8, 4, 3, seed=2 * step + 1)
        parts = [half.unflatten(0, (replicas, -1)) for half in halves]
        with norms.step(one):
            one(torch.cat(parts, 1).flatten(0, 1))
        with norms.step(two):
            for half in halves:
                two(half)
    assert one.alpha not in (0, 0.25)
    for name, buffer in one.named_buffers():
        close(two.get_buffer(name), buffer)


def test_offline_estimation_moves_alpha_and_beta_alone() -> None:
    net = nn.Sequential(nets(norms.EvalNorm, method="fixed"), nn.Dropout(), norms.BatchNorm(4))
    batches = [(draw(8, 3, 6, 6, seed=i).float(), "label") for i in range(3)]
    with norms.step(net):
        net(batches[0][0])
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    found = norms.fit_evalnorm(net, batches, epochs=4, lr=0.3)
    after = net.state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {"0.1.alpha", "0.1.beta"}
    assert found == {"0.1": (float(after["0.1.alpha"]), float(after["0.1.beta"]))}
    assert modes == [m.training for m in net.modules()]
    assert norms.fit_evalnorm(net, batches, epochs=4, lr=0.3) == found
    with pytest.raises(ValueError, match="norm='evalnorm'"):
        norms.fit_evalnorm(net[1], batches)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_have_float32_statistics(dtype: torch.dtype) -> None:
    half, single = (norms.EvalNorm(4, group=2) for _ in range(2))
    x = (draw(8, 4, 5) * 100 + 300).to(dtype)
    for layer, part in ((half, x), (single, x.float())):
        with norms.step(layer):
            layer(part)
        layer.eval()
    close(half.alpha, single.alpha, 1e-6)
    assert half(x).dtype == dtype
    close(half(x).float(), single(x.float()).detach(), 0.01)


def test_dead_channels_and_offsets_are_harmless() -> None:
    x = draw(8, 4, 5, 5).float()
    x[:, 0], x[:, 1] = 3.0, x[:, 1] + 1e4
    layer = norms.EvalNorm(4, group=2, lr=1.0, momentum=1.0)
    for _ in range(3):
        with norms.step(layer):
            layer(x)
    layer.eval()
    assert layer(x).isfinite().all()
    assert 0 < layer.alpha < 1
    exact = norms.EvalNorm(4, group=2).double().eval()
    exact.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
    close(layer(x).double(), exact(x.double()).detach(), 2e-3)
    assert layer(x[:0]).shape == (0, 4, 5, 5)


def test_group_from_the_first_batch() -> None:
    """Without group=, the initial values come with B; a loaded state keeps its own."""
    layer = norms.EvalNorm(4, lr=0.0).double()
    assert layer.alpha == 0
    layer(draw(3, 4, 2))
    assert layer.alpha == layer.beta == 1 / 9
    again = norms.EvalNorm(4, lr=0.0).double()
    again.load_state_dict({**layer.state_dict(), "alpha": torch.tensor(0.5)})
    again(draw(3, 4, 2))
    assert again.alpha == 0.5


@pytest.mark.parametrize(
    "options", [{"method": "offline"}, {"alpha": 1.5}, {"beta": "1/N"}, {"alpha": -0.1}], ids=str
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        norms.EvalNorm(4, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_compiled_and_eager_sums_agree(layout: Layout, dtype: torch.dtype) -> None:
    x = batch(layout, 3)[0].to(dtype)
    threshold = draw(*x.shape[:2], seed=1).to(dtype)
    if not kernels.usable(x):
        pytest.skip("no compiler")
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    own, other = (m.threshold_sums(x, threshold) for m in (kernels, eager))
    for one, two in zip(own, other, strict=True):
        close(one, two, tolerance)
    threshold[:, 0] = x.flatten(2)[:, 0, 0] if x.dim() > 2 else x[:, 0]
    assert torch.equal(
        kernels.threshold_sums(x, threshold)[0], eager.threshold_sums(x, threshold)[0]
    )

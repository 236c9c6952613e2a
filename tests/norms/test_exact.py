"""Every layer against its slow float64 reference: outputs, gradients and buffers over 32 steps.

Inputs drift in mean and scale so that limits bind now and then, gamma and beta change at every
step, some steps are skipped, the loss is scaled, evaluation is looked at on the way, and half way
the layer goes on as a fresh one that loaded its state_dict.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normrepro import norms
from tests import oracles
from tests.norms.cases import CASES, LAYOUTS, PAIRS, STEPS, Case, Layout
from tests.oracles.checks import close, draw

TOLERANCE = 1e-9


def build(case: Case, layout: Layout) -> nn.Module:
    """The layer under test, in float64."""
    options = dict(case.options)
    run_length = options.pop("run_length", None)
    layer = case.layer(layout.shape[1], group=layout.group, replicas=layout.replicas, **options)
    if run_length is not None:
        layer.run_length = run_length
    return layer.double()


def start_at(layer: nn.Module, oracle: Any, count: int) -> None:
    """Set the counter of both, the layer's through its state_dict."""
    state = layer.state_dict()
    name = "iters" if "iters" in state else "num_batches_tracked"
    layer.load_state_dict({**state, name: torch.tensor(count)})
    setattr(oracle, "iters" if name == "iters" else "steps", count)


def batch(layout: Layout, step: int) -> tuple[Tensor, Tensor]:
    """Input and output gradient of a step; mean and scale of the input drift."""
    x = draw(*layout.shape, seed=step, shift=0.0) * (1 + 0.6 * (step % 5)) + 0.3 * (step % 7)
    gz = draw(*layout.shape, seed=1000 + step)
    if layout.channels_last:
        x, gz = (v.to(memory_format=torch.channels_last) for v in (x, gz))
    return x, gz


def change_affine(layer: nn.Module, oracle: Any, step: int) -> None:
    """New gamma and beta for both."""
    oracle.gamma = draw(oracle.channels, seed=2000 + step)
    oracle.beta = draw(oracle.channels, seed=3000 + step)
    with torch.no_grad():
        layer.weight.copy_(oracle.gamma)
        layer.bias.copy_(oracle.beta)


def run(layer: nn.Module, x: Tensor, gz: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients (input, gamma, beta) of the layer."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, (x, layer.weight, layer.bias), gz)


def compare(
    layer: nn.Module, oracle: Any, got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]
) -> None:
    """Outputs and gradients, then every buffer by name, shape, type and value."""
    for actual, expected in zip(got, wanted, strict=True):
        close(actual, expected, TOLERANCE)
    buffers, expected = dict(layer.named_buffers()), oracle.buffers()
    assert buffers.keys() == expected.keys()
    for name, value in expected.items():
        assert buffers[name].dtype == value.dtype, name
        close(buffers[name], value, TOLERANCE)


def evaluate(layer: nn.Module, oracle: Any, layout: Layout) -> None:
    """Evaluation of a batch that nothing needs to divide; state stays."""
    x, gz = (v[:3] for v in batch(layout, 77))
    layer.eval()
    got = run(layer, x, gz)
    layer.train()
    compare(layer, oracle, got, (oracle.evaluate(x), *oracle.evaluate_backward(gz)))


@pytest.mark.parametrize(("case", "layout"), PAIRS)
def test_layer_is_its_reference_over_many_steps(case: Case, layout: Layout) -> None:
    layer = build(case, layout)
    shape = {"group": layout.group, "replicas": layout.replicas}
    oracle = case.oracle(layout.shape[1], **shape, **case.same)
    start_at(layer, oracle, case.start)
    for step in range(STEPS):
        x, gz = batch(layout, step)
        scale = 2.0 ** (step % 3)
        change_affine(layer, oracle, step)
        skipped = step % 11 == 6
        with norms.step(layer, scale=scale) as s:
            got = run(layer, x, gz * scale)
            if skipped:
                s.skip()
        wanted = (oracle.forward(x), *oracle.backward(gz * scale, scale))
        if not skipped:
            oracle.commit()
        compare(layer, oracle, got, wanted)
        if step % 10 == 3:
            evaluate(layer, oracle, layout)
        if step == STEPS // 2:
            state, layer = layer.state_dict(), build(case, layout)
            layer.load_state_dict(state)


GROUP_NORMS = [
    pytest.param(groups, layout, id=f"{'x'.join(map(str, layout.shape))}-{groups}")
    for layout in {layout.shape: layout for layout in LAYOUTS}.values()
    for groups in (1, 2, 4)
    if layout.shape[1] == 4 and (len(layout.shape) > 2 or groups < 4)
]


@pytest.mark.parametrize(("groups", "layout"), GROUP_NORMS)
def test_group_norm_is_its_reference(groups: int, layout: Layout) -> None:
    layer, oracle = norms.GroupNorm(4, groups=groups).double(), oracles.GroupNorm(4, groups)
    for step in range(STEPS):
        x, gz = batch(layout, step)
        change_affine(layer, oracle, step)
        with norms.step(layer):
            got = run(layer, x, gz)
        compare(layer, oracle, got, (oracle.forward(x), *oracle.backward(gz)))
    evaluate(layer, oracle, layout)


@pytest.mark.parametrize("name", ["bn", "brn", "mabn", "mabn-official", "mabn-root"])
def test_without_affine_gamma_is_one(name: str) -> None:
    case, layout = CASES[name], Layout((6, 3, 2))
    case = case._replace(options={**case.options, "affine": False})
    layer, oracle = build(case, layout), case.oracle(3, **case.same)
    assert not list(layer.parameters())
    for step in range(4):
        x, gz = batch(layout, step)
        x.requires_grad_()
        with norms.step(layer):
            y = layer(x)
            y.backward(gz)
        close(y.detach(), oracle.forward(x.detach()), TOLERANCE)
        close(x.grad, oracle.backward(gz)[0], TOLERANCE)
        oracle.commit()


def test_group_norm_takes_what_divides_both_where_it_is_told_to():
    layer = norms.GroupNorm(144, groups=32, indivisible="divisor")
    x = torch.randn(2, 144, 3, 3)
    torch.testing.assert_close(layer(x), torch.nn.functional.group_norm(x, 16))
    assert norms.GroupNorm(24, groups=32, indivisible="divisor").groups == 24
    assert norms.GroupNorm(64, groups=32, indivisible="divisor").groups == 32
    with pytest.raises(ValueError, match=r"norm\.layer\.indivisible=divisor"):
        norms.GroupNorm(144, groups=32)
    with pytest.raises(ValueError, match="none of error, divisor"):
        norms.GroupNorm(144, indivisible="round")

"""CBN with its convolution against slow float64 references: outputs, gradients, buffers, 32 steps.

Weights, biases, gamma and beta change at every step, some steps are skipped, and half way the layer
goes on as a fresh one that loaded its state_dict.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from normrepro import norms
from tests import oracles
from tests.oracles.checks import close, draw

STEPS, TOLERANCE = 32, 1e-9


class EpsInside(oracles.OfficialCBN):
    """The released layer with its argument out_p=True."""

    def divisor(self, var: Tensor) -> tuple[Tensor, Tensor]:
        return oracles.CBN.divisor(self, var)


class Setting(NamedTuple):
    """Options of the layer, and the reference for them."""

    oracle: type = oracles.CBN
    order: int = 1
    window: int = 3
    burn_in: int = 2
    more: tuple[tuple[str, Any], ...] = ()


class Layout(NamedTuple):
    replicas: int
    group: int | None


OFFICIAL = (("variant", "official"),)
SETTINGS = {
    "paper": Setting(),
    "paper-k8": Setting(window=8, burn_in=0),
    "paper-k1": Setting(window=1),
    "naive": Setting(order=0),
    "second": Setting(order=2, window=4),
    "official": Setting(oracles.OfficialCBN, more=OFFICIAL),
    "official-k5": Setting(oracles.OfficialCBN, window=5, burn_in=1, more=OFFICIAL),
    "official-k1": Setting(oracles.OfficialCBN, window=1, more=OFFICIAL),
    "official-naive": Setting(oracles.OfficialCBN, order=0, more=OFFICIAL),
    "official-inside": Setting(EpsInside, more=(*OFFICIAL, ("eps_outside", False))),
}
CONVS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grouped": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (8, 4, 6, 5)),
    "linear": (lambda: nn.Linear(5, 3), (16, 5)),
    "plain": (lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), (8, 3, 4, 3)),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2), (8, 2, 5, 4)),
    "patches": (lambda: nn.Conv2d(13, 2, 5, padding=2, bias=False), (8, 13, 2, 2)),
    "depthwise": (lambda: nn.Conv1d(3, 3, 3, groups=3), (8, 3, 7)),
    "3d": (lambda: nn.Conv3d(2, 3, 2), (8, 2, 3, 3, 2)),
}
LAYOUTS = [Layout(1, 4), Layout(2, None), Layout(2, 2)]
PAIRS = [("paper", conv, layout) for conv in CONVS for layout in LAYOUTS]
PAIRS += [(s, c, at) for s in SETTINGS for c in ("grouped", "linear") for at in LAYOUTS[:2]]
PAIRS = [
    pytest.param(*p, id=f"{p[0]}-{p[1]}-R{p[2].replicas}-B{p[2].group}")
    for p in dict.fromkeys(PAIRS)
    if p[1:] != ("linear", LAYOUTS[2])  # two values per channel: no gradient but rounding
]


def build(conv: nn.Module, setting: Setting, layout: Layout) -> norms.CBN:
    layer = norms.CBN(
        conv.weight.shape[0],
        **layout._asdict(),
        order=setting.order,
        window=setting.window,
        burn_in=setting.burn_in,
        **dict(setting.more),
    ).double()
    layer.attach(conv)
    return layer


def reference(conv: nn.Module, setting: Setting, layout: Layout) -> oracles.CBN:
    names = () if isinstance(conv, nn.Linear) else ("stride", "padding", "dilation")
    numbers = {name: getattr(conv, name)[0] for name in names}
    shape = oracles.Conv(**numbers, groups=getattr(conv, "groups", 1))
    return setting.oracle(
        conv.weight.shape[0],
        **layout._asdict(),
        conv=shape,
        window=setting.window,
        order=setting.order,
        burn_in=setting.burn_in,
    )


def change(conv: nn.Module, layer: norms.CBN, oracle: oracles.CBN, step: int) -> None:
    """Let the weights wander; new gamma and beta."""
    oracle.gamma = draw(oracle.channels, seed=2000 + step)
    oracle.beta = draw(oracle.channels, seed=3000 + step)
    with torch.no_grad():
        for i, p in enumerate(conv.parameters()):
            p += 0.1 * draw(*p.shape, seed=100 * step + i, shift=0)
        layer.weight.copy_(oracle.gamma)
        layer.bias.copy_(oracle.beta)


def parameters(conv: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in conv.parameters()]


def compare(conv: nn.Module, layer: norms.CBN, oracle: oracles.CBN, y: Tensor, gz: Tensor) -> None:
    """Output and all gradients of one training step."""
    y = y.clone().requires_grad_()
    out = layer(conv(y))
    leaves = [y, layer.weight, layer.bias, *conv.parameters()]
    got = [out.detach(), *torch.autograd.grad(out, leaves, gz)]
    wanted = [oracle.forward(y.detach(), *parameters(conv))]
    gx, *affine = oracle.backward(gz)
    gi, gw, gb = oracle.conv_backward(gx)
    for actual, expected in zip(got, [*wanted, gi, *affine, gw], strict=False):
        close(actual, expected, TOLERANCE)
    if conv.bias is not None:  # a sum of terms that nearly cancel
        scale = float(gx.abs().transpose(0, 1).flatten(1).sum(1).max())
        torch.testing.assert_close(got[-1], gb, rtol=0, atol=TOLERANCE * scale)


def compare_buffers(layer: norms.CBN, oracle: oracles.CBN) -> None:
    """Running statistics, the counter, and each recorded entry."""
    close(layer.running_mean, oracle.packed(oracle.running_mean), TOLERANCE)
    close(layer.running_var, oracle.packed(oracle.running_var), TOLERANCE)
    assert layer.num_batches_tracked == oracle.steps
    assert layer.count(0) == len(oracle.old[0])
    for r, entries in enumerate(oracle.old if layer.order < 2 else ()):
        for i, entry in enumerate(entries):
            compare_entry(layer, entry, lambda name, r=r, i=i: in_time(layer, name)[r, i])


def in_time(layer: norms.CBN, name: str) -> Tensor:
    return layer.oldest_first(layer.ring(f"window_{name}", 0), 0)


def compare_entry(layer: norms.CBN, entry: Any, ring: Callable[[str], Tensor]) -> None:
    mu, v = entry.mu[:, 0], (entry.nu - entry.mu**2)[:, 0]
    close(ring("mean"), mu, TOLERANCE)
    if layer.order == 0:
        close(ring("base"), v, TOLERANCE)
        return
    slope, w = entry.dnu - 2 * entry.mu * entry.dmu, entry.weight.flatten(1)
    patch = ring("patch0").repeat_interleave(len(mu) // len(ring("patch0")), 0)
    close(patch, entry.dmu, TOLERANCE)
    close(ring("slope0"), slope, TOLERANCE)
    close(ring("base"), v - (slope * w).sum(1), TOLERANCE)
    official = layer.variant == "official"
    bias = 0 if entry.bias is None or official else entry.bias
    close(ring("linear"), (entry.dmu * w).sum(1) + bias, TOLERANCE)


@pytest.mark.parametrize(("setting", "conv", "layout"), PAIRS)
def test_layer_is_its_reference_over_many_steps(setting: str, conv: str, layout: Layout) -> None:
    torch.manual_seed(0)
    make, shape = CONVS[conv]
    conv, options = make().double(), SETTINGS[setting]
    layer, oracle = build(conv, options, layout), reference(conv, options, layout)
    for step in range(STEPS):
        change(conv, layer, oracle, step)
        y = draw(*shape, seed=400 + step) * (1 + 0.3 * (step % 4))
        with norms.step(layer) as s:
            compare(conv, layer, oracle, y, draw(*conv(y).shape, seed=700 + step))
            if step % 11 == 6:
                s.skip()
        if step % 11 != 6:
            oracle.commit()
        compare_buffers(layer, oracle)
        if step % 10 == 3:
            x = conv(y).detach()[:3]
            close(layer.eval()(x).detach(), oracle.evaluate(x), TOLERANCE)
            layer.train()
        if step == STEPS // 2:
            state = layer.state_dict()
            layer.detach()
            layer = build(conv, options, layout)
            layer.load_state_dict(state)

"""MABN called several times in a step, and together with the convolution before it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normrepro import norms
from tests import oracles
from tests.oracles.checks import close, draw, prepared

TOLERANCE = 1e-9
SHORT: dict[str, Any] = {"group": 2, "replicas": 2, "memory": 5, "clip": 1.3}


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_calls_of_a_step_have_windows_of_their_own_and_share_the_ema(variant: str) -> None:
    """A layer used twice is two references whose EMA moves by the mean over the calls."""
    kind = {"paper": oracles.MABN, "official": oracles.OfficialMABN}[variant]
    layer = norms.MABN(3, variant=variant, renorm_from=4, **SHORT).double()
    calls = [prepared(kind(3, renorm_from=4, **SHORT)) for _ in range(2)]
    load_affine(layer, calls[0])
    for step in range(9):
        xs = [draw(8, 3, 2, seed=10 * step + i).requires_grad_() for i in range(2)]
        gzs = [draw(8, 3, 2, seed=500 + 10 * step + i) for i in range(2)]
        with norms.step(layer):
            ys = [layer(x) for x in xs]
            torch.autograd.backward(ys, gzs)
        for call, x, y, gz in zip(calls, xs, ys, gzs, strict=True):
            close(y.detach(), call.forward(x.detach()), TOLERANCE)
            close(x.grad, call.backward(gz)[0], TOLERANCE)
            call.commit()
        shared = [sum(pair) / 2 for pair in zip(*(c.running_var for c in calls), strict=True)]
        calls[0].running_var, calls[1].running_var = shared, list(shared)
    close(layer.running_var, calls[0].buffers()["running_var"], TOLERANCE)
    windows = torch.cat([call.buffers()["psi_window"] for call in calls], dim=1)
    close(layer.psi_window, windows, TOLERANCE)
    assert layer.psi_count.tolist() == [5, 5]
    assert layer.iters == 9


def load_affine(layer: nn.Module, oracle: Any) -> None:
    """Give the layer the reference's gamma and beta."""
    with torch.no_grad():
        layer.weight.copy_(oracle.gamma)
        layer.bias.copy_(oracle.beta)


CONVS = [
    pytest.param(nn.Linear(6, 4), (8, 6), id="linear"),
    pytest.param(nn.Conv1d(6, 4, 3, stride=2, padding=1), (8, 6, 7), id="1d"),
    pytest.param(nn.Conv2d(6, 4, 3, groups=2, dilation=2, bias=False), (8, 6, 6, 5), id="2d"),
    pytest.param(nn.Conv2d(4, 4, 1, groups=4), (8, 4, 3, 2), id="depthwise"),
    pytest.param(nn.Conv3d(3, 4, 2), (8, 3, 3, 3, 2), id="3d"),
]


@pytest.mark.parametrize(("conv", "shape"), CONVS)
def test_attached_convolution_is_centred(conv: nn.Module, shape: tuple[int, ...]) -> None:
    """Eq. 18: the output is that of W - Wbar, and dW = dWc - mean of dWc over each filter."""
    conv = conv.double()
    layer = norms.MABN(4, group=2).double()
    layer.attach(conv)
    x = draw(*shape)
    parameters = dict(conv.named_parameters())
    weight = parameters["weight"].detach()
    free = {**parameters, "weight": oracles.centred(weight).requires_grad_()}
    y = conv(x)
    gz = draw(*y.shape, seed=3)
    plain = type(conv).forward
    wanted = call_with(conv, plain, free, x)
    close(y.detach(), wanted.detach(), TOLERANCE)
    (gw,) = torch.autograd.grad(y, parameters["weight"], gz)
    (gc,) = torch.autograd.grad(wanted, free["weight"], gz)
    close(gw, oracles.centred(gc), TOLERANCE)


def call_with(conv: nn.Module, forward: Any, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Run a convolution's own forward, without hooks, on other parameters."""
    saved = dict(conv._parameters)
    for name, value in parameters.items():
        del conv._parameters[name]
        conv.__dict__[name] = value
    try:
        return forward(conv, x)
    finally:
        for name in parameters:
            del conv.__dict__[name]
        conv._parameters.update(saved)


@pytest.mark.parametrize(("group", "memory"), [(2, 16), (5, 6), (None, 3), (40, 1)])
def test_default_window_stands_for_32_images(group: int | None, memory: int) -> None:
    layer = norms.MABN(2, group=group).double()
    x = draw(group or 10, 2)
    with norms.step(layer):
        layer(x)
    assert layer.psi_window.shape == (1, memory, 2)


def test_official_root_refuses_groups() -> None:
    layer = norms.MABN(2, group=2, variant="official_root").double()
    with pytest.raises(ValueError, match="one group per replica"):
        layer(draw(4, 2))

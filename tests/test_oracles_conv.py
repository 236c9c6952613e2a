"""The convolution under the CBN reference, and the derivatives of its statistics, against torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import oracles
from tests.oracles.checks import close, draw, statistics

CONVS = [
    pytest.param({}, (4, 3), (4, 3), F.linear, id="linear"),
    pytest.param({"stride": 2}, (4, 3, 2), (4, 3, 7), F.conv1d, id="1d"),
    pytest.param({"padding": 1, "groups": 2}, (4, 1, 3, 3), (4, 2, 4, 5), F.conv2d, id="2d"),
    pytest.param({"stride": 2, "padding": 2, "dilation": 2}, (4, 2, 3, 2), (4, 2, 6, 5), F.conv2d),
    pytest.param({"padding": 1}, (4, 2, 2, 1, 2), (4, 2, 3, 2, 3), F.conv3d, id="3d"),
]
conv_cases = pytest.mark.parametrize(("options", "weights", "shape", "torchs"), CONVS)


@conv_cases
def test_convolution_is_torchs(
    options: dict[str, int],
    weights: tuple[int, ...],
    shape: tuple[int, ...],
    torchs: Callable[..., Tensor],
) -> None:
    conv = oracles.Conv(**options)
    leaves = [draw(*s, seed=i).requires_grad_() for i, s in enumerate((shape, weights, (4,)))]
    y = torchs(*leaves, **options)
    gz = draw(*y.shape, seed=5)
    x, weight, bias = (leaf.detach() for leaf in leaves)
    patches = conv.patches(x, weight.shape[2:])
    rows = gz.transpose(0, 1).flatten(1)
    close(conv.apply(patches, weight, bias), y.detach().transpose(0, 1).flatten(1))
    gx, gw, _ = torch.autograd.grad(y, leaves, gz)
    close(conv.input_gradient(x, weight, gz), gx)
    close(conv.weight_gradient(patches, weight, rows), gw)


@conv_cases
def test_derivatives_of_the_statistics_are_autograds(
    options: dict[str, int],
    weights: tuple[int, ...],
    shape: tuple[int, ...],
    torchs: Callable[..., Tensor],
) -> None:
    """C-3: a channel's mu and nu depend on its own filter only, by mean patches."""
    oracle = oracles.CBN(4, conv=oracles.Conv(**options), window=2)
    x, weight = draw(*shape), draw(*weights, seed=1)
    oracle.forward(x, weight)
    found = oracle.new[0][0]

    def functional(w: Tensor) -> tuple[Tensor, Tensor]:
        return statistics(torchs(x, w, **options))

    jacobians = torch.func.jacrev(functional)(weight)
    for jacobian, derivative in zip(jacobians, (found.dmu, found.dnu), strict=True):
        full = torch.zeros_like(jacobian).flatten(2)
        full[range(4), range(4)] = derivative
        close(jacobian.flatten(2), full)

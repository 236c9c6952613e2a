"""Tools of the tests: inputs, tolerances, autograd's answer, and moments by another route."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHAPES = [(8, 4), (8, 4, 3), (8, 4, 3, 2), (8, 4, 2, 3, 2)]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Equal up to `tolerance` of the largest entry."""
    scale = float(expected.abs().max()) or 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def draw(*shape: int, seed: int = 0, shift: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(*shape, generator=generator, dtype=torch.float64) + shift


def prepared(oracle: Any, seed: int = 7) -> Any:
    """The oracle with gamma and beta that are not one and zero."""
    oracle.gamma = draw(oracle.channels, seed=seed)
    oracle.beta = draw(oracle.channels, seed=seed + 1)
    return oracle


def broadcast(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) ready to meet (N, C, *)."""
    return vector.view((1, -1) + (1,) * (x.dim() - 2))


def differentiate(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], oracle: Any, x: Tensor, gz: Tensor
) -> tuple[Tensor, ...]:
    """Value and autograd gradients of function(x, gamma, beta) contracted with gz."""
    leaves = [v.clone().requires_grad_() for v in (x, oracle.gamma, oracle.beta)]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad((y * gz).sum(), leaves)


def same(oracle: Any, x: Tensor, gz: Tensor, expected: tuple[Tensor, ...]) -> None:
    """Forward and the three gradients of the oracle against those expected."""
    for actual, wanted in zip((oracle.forward(x), *oracle.backward(gz)), expected, strict=True):
        close(actual, wanted)


def advance(oracle: Any, x: Tensor, gz: Tensor) -> None:
    oracle.forward(x)
    oracle.backward(gz)
    oracle.commit()


def moments(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of consecutive groups, as large as x."""
    grouped = x.view(-1, group, *x.shape[1:])
    dims = (1, *range(3, grouped.dim()))
    var, mean = torch.var_mean(grouped, dims, correction=0, keepdim=True)
    return mean.expand_as(grouped).reshape(x.shape), var.expand_as(grouped).reshape(x.shape)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square per channel."""
    rows = x.transpose(0, 1).flatten(1)
    return rows.mean(1), rows.square().mean(1)

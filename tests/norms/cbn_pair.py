"""A convolution with CBN behind it, for its tests."""

from typing import Any

import torch
from torch import Tensor, nn

from normrepro import norms
from tests.oracles.checks import draw


def pair(seed: int = 0, **options: Any) -> tuple[nn.Module, norms.CBN]:
    """A convolution and the layer behind it, gamma and beta not one and zero."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    layer = norms.CBN(4, **{"window": 3} | options).double()
    layer.attach(conv)
    with torch.no_grad():
        layer.weight.copy_(draw(4, seed=1))
        layer.bias.copy_(draw(4, seed=2))
    return conv, layer


def images(step: int, n: int = 4) -> Tensor:
    return draw(n, 3, 5, 4, seed=step)


def move(conv: nn.Module, step: int, by: float = 0.1) -> None:
    with torch.no_grad():
        for i, p in enumerate(conv.parameters()):
            p += by * draw(*p.shape, seed=50 + 10 * step + i, shift=0)

"""What the checks share: draws, errors, gradients of a loss that is not linear."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normrepro import norms


def draw(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Draw normal numbers in float64, from a generator of their own."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) + shift


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, in units of the largest expected number."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def norm2(found: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Euclidean norm."""
    return float((found - expected).norm() / expected.norm())


def gradients(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, dL/dy and dL/dx of a loss that is not linear in the output."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y.sin() * weights + y.square() * weights.flip(0)).sum()
    gy, gx = torch.autograd.grad(loss, (y, x))
    return y.detach(), gy, gx


def mean(x: Tensor) -> Tensor:
    """Average over images and space, per channel, in a shape that broadcasts."""
    return x.mean([d for d in range(x.dim()) if d != 1], keepdim=True)


def variance(x: Tensor) -> Tensor:
    """Return the biased variance likewise."""
    return mean((x - mean(x)).square())


def convolution(seed: int = 0, inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    """Make a 3x3 convolution in float64 with drawn weights."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1).double().requires_grad_(False)
    conv.weight.copy_(draw(*conv.weight.shape, seed=seed) / 3)
    conv.bias.copy_(draw(outputs, seed=seed + 1))
    return conv


def cbn(conv: nn.Module, window: int, order: int = 1, **options: float) -> norms.CBN:
    """Make CBN behind a convolution, with eps = 0 and no affine part."""
    layer = norms.CBN(conv.out_channels, window=window, order=order, eps=0, affine=False, **options)
    layer = layer.double()
    layer.attach(conv)
    return layer

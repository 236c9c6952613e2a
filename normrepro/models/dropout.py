"""Dropout whose masks do not depend on how many processes train.

torch's draws from each process's own stream, so that two processes would drop other values than one
that stands for both. Here a mask is drawn for the whole batch from (seed, step, layer), and every
process takes its own images' rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normrepro.data.base import seed_of


class SharedDropout(nn.Module):
    """Drop values with probability p and scale the others by 1 / (1 - p); at evaluation nothing.

    Args:
        p: Probability, from 0 to below 1.
        rank: This process.
        world: Processes that share a batch; consecutive ranks hold consecutive images.
    """

    def __init__(self, p: float, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.p, self.rank, self.world, self.seed = p, rank, world, 0

    def forward(self, x: Tensor) -> Tensor:
        """Apply this step's mask to x (N, *)."""
        return x * self.mask(x) if self.training and self.p else x

    @torch.compiler.disable
    def mask(self, x: Tensor) -> Tensor:
        """Return 0 or 1 / (1 - p) for every value of x."""
        draw = torch.Generator(x.device).manual_seed(self.seed)
        images = len(x)
        size = (self.world * images, *x.shape[1:])
        values = torch.rand(size, generator=draw, device=x.device)
        mine = values[self.rank * images : (self.rank + 1) * images]
        return (mine >= self.p).to(x.dtype) / (1 - self.p)

    def extra_repr(self) -> str:
        """Say what the layer was built with."""
        return f"p={self.p}"


def share_dropout(model: nn.Module, rank: int, world: int) -> nn.Module:
    """Put `SharedDropout` in place of every nn.Dropout of a model; returns the model.

    Args:
        model: A model with dropout as modules; what calls F.dropout or drops whole paths itself is
            left alone.
        rank: This process.
        world: Processes that share a batch.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, SharedDropout(child.p, rank, world))
    return model


def dropouts(model: nn.Module) -> list[SharedDropout]:
    """Return a model's layers of dropout, in its order."""
    return [module for module in model.modules() if isinstance(module, SharedDropout)]


def reseed(layers: Sequence[SharedDropout], seed: int, step: int) -> None:
    """Give each layer its stream for an optimizer step; the same seed and step, the same masks."""
    for number, layer in enumerate(layers):
        layer.seed = seed_of(seed, "dropout", step, number)

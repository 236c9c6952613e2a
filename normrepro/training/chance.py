"""What a training step draws at random: masks of dropout and partners of mixup.

All of it is a function of (seed, step), not of the processes or of the steps before, so that a run
that goes on elsewhere, or on another number of processes, draws the same.
"""

import torch
from torch import Tensor, nn

from normrepro.data.base import seed_of
from normrepro.data.mixup import mixup
from normrepro.models.dropout import dropouts, reseed


class Chance:
    """Prepares each step of a run.

    Args:
        model: Its layers of dropout get their streams.
        classes: Number of classes.
        seed: The run's seed.
        rank: This process, for what draws from torch's own stream (timm's dropped paths).
        share: Images per device of the protocol.
        first: Number of this process's first device.
        alpha: Mixup's parameter; None leaves images and labels alone.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        seed: int,
        rank: int,
        share: int,
        first: int,
        alpha: float | None,
    ) -> None:
        self.layers, self.seed, self.rank = dropouts(model), seed, rank
        self.classes, self.share, self.first, self.alpha = classes, share, first, alpha

    def prepare(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Set all streams for a step; return its images (N, C, H, W) and targets, blended or not.

        Args:
            step: Optimizer steps before this one.
            x: Images (N, C, H, W).
            y: Labels (N,).
        """
        torch.manual_seed(seed_of(self.seed, "step", step, self.rank))
        reseed(self.layers, self.seed, step)
        if self.alpha is None:
            return x, y
        return mixup(x, y, self.classes, self.alpha, self.share, self.first, self.seed, step)

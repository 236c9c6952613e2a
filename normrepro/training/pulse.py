"""What all processes must know of a step before they finish it: one small sum, read late.

The sum is made right after the forward pass and read after the backward pass is launched. A GPU
thus has the whole backward pass to do while the CPU waits for four numbers of the forward, and
nothing has moved yet when they turn out to be wrong.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normrepro.distributed import Ranks


@dataclass(frozen=True)
class Beat:
    """The numbers of one step, the same on every process."""

    loss: float  # mean over all processes' images
    largest: float  # in the running statistics, summed over the layers: finite where they all are
    stop: bool  # somebody asked for the end
    save: bool  # the first process wants a checkpoint


class Pulse:
    """Sends and receives a step's beat; `send` comes before `receive`, once each."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.gpu = ranks, ranks.device.type == "cuda"
        self.wishes = torch.zeros(2, dtype=torch.float64, pin_memory=self.gpu)
        self.numbers = torch.zeros(4, dtype=torch.float64, pin_memory=self.gpu)
        self.arrived = torch.cuda.Event() if self.gpu else None

    def send(self, loss: Tensor, statistics: list[Tensor], stop: bool, save: bool) -> None:
        """Sum over the processes without waiting for the device.

        Args:
            loss: This process's mean loss, ().
            statistics: Running statistics to watch, of any shapes.
            stop: Whether this process was asked to end.
            save: Whether this process wants a checkpoint.
        """
        with torch.no_grad():
            self.wishes[0], self.wishes[1] = stop, save  # free again: the last beat was received
            norms = torch._foreach_norm(statistics, math.inf) if statistics else []
            largest = torch.stack(norms).double().sum() if norms else torch.zeros_like(loss)
            numbers = torch.stack([loss.detach().double(), largest.double()])
            wishes = self.wishes.to(loss.device, non_blocking=True)
            total = self.ranks.sum(torch.cat([numbers, wishes]))
            self.numbers.copy_(total, non_blocking=True)
            if self.arrived is not None:
                self.arrived.record()

    def receive(self) -> Beat:
        """Wait for the numbers sent last."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, largest, stop, save = self.numbers.tolist()
        return Beat(loss / self.ranks.world, largest, stop > 0, save > 0)

"""Judging a model beside its training: each epoch's row, and the end's further evaluations."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from torch import Tensor, nn

from normrepro.data.base import Batches, Source
from normrepro.diagnostics import Epoch, Watch
from normrepro.distributed import Ranks, evaluation_state
from normrepro.training.evaluations import Further, judge


@dataclass
class Judge:
    """What evaluation works on.

    Attributes:
        model: The model, not wrapped.
        data: Training and validation images.
        task: Sums and metrics.
        ranks: The processes.
        shape: Gives images the run's precision and memory format.
        autocast: Computes in the run's precision.
        validation: Starts this rank's part of the validation set, in the run's shape.
        watch: The run's diagnostics.
        evaluations: Its further evaluations.
    """

    model: nn.Module
    data: Source
    task: Any
    ranks: Ranks
    shape: Callable[[Tensor], Tensor]
    autocast: Callable[[], AbstractContextManager[None]]
    validation: Callable[[], Batches]
    watch: Watch = field(default_factory=Watch)
    evaluations: Sequence[Further] = ()

    def epoch(self, number: int, last: bool = False) -> dict[str, Any]:
        """Return the metrics of an epoch, maybe the last, and what the diagnostics say of it."""
        metrics = self.task.metrics(self.sums(watched=True))
        with self.autocast():
            return metrics | self.watch.report(self._scene(number, last))

    def further(self, steps: int) -> dict[str, float]:
        """Return the metrics of the trained weights under the further evaluations.

        Args:
            steps: Length of the training; what comes after it is unseen.
        """

        def unseen() -> Batches:
            first = -(-steps // self.data.steps_per_epoch)
            return self._shaped(chain.from_iterable(map(self.data.train_batches, count(first))))

        with self.autocast():
            found = judge(self.evaluations, self.model, unseen, self.sums)
        named = {name: self.task.metrics(sums) for name, sums in found.items()}
        return {f"{key}_{name}": v for name, own in named.items() for key, v in own.items()}

    def sums(self, watched: bool = False) -> dict[str, Tensor]:
        """Return the task's sums over the validation set, each image once over all processes."""
        with ExitStack() as stack:
            stack.enter_context(evaluation_state(self.model, self.ranks))
            if watched:
                stack.enter_context(self.watch.evaluation(self.model))
            stack.enter_context(self.autocast())
            sums = self.task.evaluate(self.model, self.validation())
        return {k: self.ranks.sum(v) for k, v in sums.items()}

    def _scene(self, epoch: int, last: bool) -> Epoch:
        data = self.data
        return Epoch(
            self.model,
            self.ranks,
            train=lambda: self._shaped(data.train_batches(epoch)),
            images=lambda: self._shaped(data.train_eval_batches()),
            test=self.validation,
            loss=self.task.loss,
            last=last,
        )

    def _shaped(self, batches: Batches) -> Batches:
        return ((self.shape(x), y) for x, y in batches)

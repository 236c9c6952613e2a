"""What a run can record of itself beside errors: values and lists in each row of the history.

`task.diagnostics` lists them; without it nothing here runs. A diagnostic watches the epoch's
evaluation, so that it costs no pass of its own, and then reports. None of them moves weights, state
or the training's bits.

A list has one entry per layer: entry 0 is the network's input, entry i the i-th normalizer in the
model's order (`layer_names`; the record holds the names once), None where there is nothing to say.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from normrepro import norms
from normrepro.data.base import Batches
from normrepro.distributed import Ranks


@dataclass(frozen=True)
class Epoch:
    """What a diagnostic may look at after an epoch.

    Attributes:
        model: The model, in the modes in which it trains.
        ranks: The processes; every one reports, and all must come to the same values.
        train: Starts the batches that the epoch trained on, this rank's slices.
        images: Starts this rank's part of the training images without augmentation, each once.
        test: Starts this rank's part of the validation set.
        loss: The task's loss of a batch: model, images, labels.
        last: Whether the training ends with it.
    """

    model: nn.Module
    ranks: Ranks
    train: Callable[[], Batches]
    images: Callable[[], Batches]
    test: Callable[[], Batches]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    last: bool = True


class Diagnostic(Protocol):
    """The face of a diagnostic."""

    def watch(self, model: nn.Module) -> AbstractContextManager[None]:
        """Look on while the model is evaluated, by the state that evaluation uses."""
        ...

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Return entries of the epoch's row, numbers or lists of numbers."""
        ...


class Watch:
    """All diagnostics of a run."""

    def __init__(self, diagnostics: Sequence[Diagnostic] = ()) -> None:
        self.diagnostics = list(diagnostics)

    @contextmanager
    def evaluation(self, model: nn.Module) -> Iterator[None]:
        """Watch an evaluation."""
        with ExitStack() as stack:
            for diagnostic in self.diagnostics:
                stack.enter_context(diagnostic.watch(model))
            yield

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Collect what the diagnostics have to say."""
        found: dict[str, Any] = {}
        for diagnostic in self.diagnostics:
            found |= diagnostic.report(epoch)
        return found


def layers(model: nn.Module) -> dict[str, norms.Normalizer]:
    """Return a model's normalizers by name, in its order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, norms.Normalizer)}


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of what a list of a diagnostic speaks of."""
    return ["input", *layers(model)]


class AfterEpoch:
    """A diagnostic that needs passes of its own, and sees nothing of the evaluation."""

    def watch(self, model: nn.Module) -> AbstractContextManager[None]:
        """See nothing."""
        return nullcontext()


class TrainError(AfterEpoch):
    """The training error of the weights at an epoch's end, normalized as in training.

    XBNBlock's training error (Figures 2 to 5): batch statistics on the batches of the epoch, by the
    same weights as the test error beside it. Nothing moves.
    """

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Return `train_error` in percent."""
        device = next(epoch.model.parameters()).device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for x, y in epoch.train():
            logits = untouched(epoch.model, x)
            wrong = (logits.argmax(dim=1) != y) | logits.isnan().any(dim=1)
            sums += torch.stack([wrong.sum(), torch.full_like(wrong.sum(), len(y))])
        wrong, count = epoch.ranks.sum(sums).tolist()
        return {"train_error": 100 * wrong / count}


class Coefficients(AfterEpoch):
    """EvalNorm's alpha and beta in each layer at the end of the training (EvalNorm, Figure 3)."""

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Return lists `alpha` and `beta`; None for the input and for other normalizers."""
        if not epoch.last:
            return {}
        found = layers(epoch.model).values()
        own = [m if isinstance(m, norms.EvalNorm) else None for m in found]
        return {
            name: [None, *(m and float(getattr(m, name)) for m in own)]
            for name in ("alpha", "beta")
        }


@torch.no_grad()
def untouched(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs of a training forward that leaves no trace in the normalizers."""
    with norms.step(model) as s:
        logits = model(x)
        s.skip()
    return logits

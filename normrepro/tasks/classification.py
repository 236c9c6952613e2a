"""Image classification: cross-entropy, top-1 and top-5 error."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients; give each module its mode back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Classification:
    """Cross-entropy with label smoothing, judged by top-1 and, from 5 classes on, top-5 error.

    Args:
        label_smoothing: Share of the target spread evenly over all classes. The evaluation's loss
            has it too, so that training and validation losses compare.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss () of a batch.

        Args:
            model: Maps images to logits (N, classes).
            x: Images (N, C, H, W).
            y: Labels (N,), or the probability of each class (N, classes).
        """
        logits = model(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = y.to(logits) if y.is_floating_point() else y
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def evaluate(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Sum what the metrics need over this rank's batches, the model in evaluation mode.

        Args:
            model: Maps images (N, C, H, W) to logits (N, classes).
            batches: Pairs of images and labels; none at all is allowed on a rank.

        Returns:
            0-d float64 tensors `count`, `loss` (summed), `wrong`, and of the images judged
            among 5 or more classes `count5` and `wrong5`, on the model's device; adding them over
            ranks gives the sums of the whole set.
        """
        device = next(model.parameters()).device
        sums = {
            key: torch.zeros((), dtype=torch.float64, device=device)
            for key in ("count", "loss", "wrong", "count5", "wrong5")
        }
        with evaluating(model):
            for x, y in batches:
                logits = model(x).double()  # (N, classes)
                # argmax may point at a NaN: such an image is wrong whatever its label is.
                no_number = logits.isnan().any(dim=1)
                wrong = (logits.argmax(dim=1) != y) | no_number
                smoothing = self.label_smoothing
                sums["count"] += len(y)
                sums["wrong"] += wrong.sum()
                if logits.shape[1] >= 5:
                    sums["count5"] += len(y)
                    sums["wrong5"] += ((places(logits, y) >= 5) | no_number).sum()
                sums["loss"] += F.cross_entropy(
                    logits, y, label_smoothing=smoothing, reduction="sum"
                )
        return sums

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Turn sums over the whole set into errors in percent and the mean loss."""
        count, count5 = float(sums["count"]), float(sums["count5"])
        found = {"error": 100 * float(sums["wrong"]) / count, "loss": float(sums["loss"]) / count}
        return found | ({"top5_error": 100 * float(sums["wrong5"]) / count5} if count5 else {})


def places(logits: Tensor, y: Tensor) -> Tensor:
    """Return the place (N,), from 0, of each image's label when the logits (N, classes) fall.

    Of equal logits the class with the smaller number stands first, on every machine.
    """
    own = logits.gather(1, y[:, None])  # (N, 1)
    before = torch.arange(logits.shape[1], device=y.device) < y[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(dim=1)

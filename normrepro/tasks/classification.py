"""Image classification: cross-entropy, top-1 error."""

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
    """Cross-entropy with label smoothing, judged by top-1 error.

    Args:
        label_smoothing: Share of the target spread evenly over all classes. The evaluation's loss
            has it too, so that training and validation losses compare.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss () of a batch: images x (N, C, H, W), labels y (N,)."""
        logits = model(x)
        at_least_float = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(at_least_float), y, label_smoothing=self.label_smoothing)

    def evaluate(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Sum what the metrics need over this rank's batches, the model in evaluation mode.

        Args:
            model: Maps images (N, C, H, W) to logits (N, classes).
            batches: Pairs of images and labels; none at all is allowed on a rank.

        Returns:
            0-d float64 tensors `count`, `loss` (summed) and `wrong`, on the model's device; adding
            them over ranks gives the sums of the whole set.
        """
        device = next(model.parameters()).device
        sums = {
            key: torch.zeros((), dtype=torch.float64, device=device)
            for key in ("count", "loss", "wrong")
        }
        with evaluating(model):
            for x, y in batches:
                logits = model(x).double()  # (N, classes)
                # argmax may point at a NaN: such an image is wrong whatever its label is.
                wrong = (logits.argmax(dim=1) != y) | logits.isnan().any(dim=1)
                smoothing = self.label_smoothing
                sums["count"] += len(y)
                sums["wrong"] += wrong.sum()
                sums["loss"] += F.cross_entropy(
                    logits, y, label_smoothing=smoothing, reduction="sum"
                )
        return sums

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Turn sums over the whole set into top-1 error in percent and mean loss."""
        count = float(sums["count"])
        return {"error": 100 * float(sums["wrong"]) / count, "loss": float(sums["loss"]) / count}

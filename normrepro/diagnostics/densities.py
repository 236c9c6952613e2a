"""One channel's normalized activations, in training and evaluated (EvalNorm, Figure 1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normrepro import norms
from normrepro.config import ConfigError
from normrepro.diagnostics.base import AfterEpoch, Epoch, layers, untouched
from normrepro.distributed import evaluation_state
from normrepro.tasks.classification import evaluating

BINS, LIMIT = 80, 4.0  # of the histograms, from -LIMIT to LIMIT


class Densities(AfterEpoch):
    """Histograms of a channel's normalized values by batch statistics, by EMA and by EvalNorm.

    All three see the first training batches of the epoch, by the weights at its end: with batch
    statistics in every layer (`bn`), evaluated with the running ones (`ema`), and evaluated with
    alpha and beta (`en`). Values are those before gamma and beta.

    Args:
        layer: Name of an EvalNorm layer.
        channel: Which of its channels; the paper takes an arbitrary one of an arbitrary layer.
        batches: How many batches.
    """

    def __init__(self, layer: str, channel: int = 0, batches: int = 4) -> None:
        self.layer, self.channel, self.batches = layer, channel, batches

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Return lists `density_bn`, `density_ema`, `density_en`, and deviations, `spread_bn`, ...

        Raises:
            ConfigError: There is no such EvalNorm layer or channel.
        """
        layer = layers(epoch.model).get(self.layer)
        if not isinstance(layer, norms.EvalNorm) or self.channel >= layer.channels:
            raise ConfigError(
                f"task.diagnostics: no EvalNorm {self.layer} with a channel {self.channel}: "
                "norm=evalnorm, and a layer of the model"
            )
        found: dict[str, Any] = {}
        for name, rule in (("bn", None), ("ema", "ema"), ("en", None)):
            with self._collecting(layer) as values:
                for x, _ in islice(epoch.train(), self.batches):
                    if name == "bn":
                        untouched(epoch.model, x)
                        continue
                    self._evaluate(epoch, rule, x)
            found |= _described(name, torch.cat(values), epoch)
        return found

    def _evaluate(self, epoch: Epoch, rule: str | None, x: Tensor) -> None:
        with (
            evaluation_state(epoch.model, epoch.ranks),
            norms.evaluation_rule(epoch.model, rule),
            evaluating(epoch.model),
        ):
            epoch.model(x)

    @contextmanager
    def _collecting(self, layer: norms.Normalizer) -> Iterator[list[Tensor]]:
        """Collect the channel's values before gamma and beta."""
        values: list[Tensor] = []

        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            y = output[:, self.channel].detach().double().flatten()
            if layer.weight is not None:
                y = (y - layer.bias[self.channel].detach()) / layer.weight[self.channel].detach()
            values.append(y)

        handle = layer.register_forward_hook(look)
        try:
            yield values
        finally:
            handle.remove()


def _described(name: str, values: Tensor, epoch: Epoch) -> dict[str, Any]:
    """Return a density over the bins, and the standard deviation, over all processes."""
    counts = torch.histc(values, BINS, -LIMIT, LIMIT)
    one = torch.ones_like(values)
    sums = torch.stack([power.sum() for power in (one, values, values.square())])
    counts, (count, first, second) = epoch.ranks.sum(counts), epoch.ranks.sum(sums)
    deviation = (second / count - (first / count).square()).clamp(min=0).sqrt()
    width = 2 * LIMIT / BINS
    return {
        f"density_{name}": (counts / (count * width)).tolist(),
        f"spread_{name}": float(deviation),
    }

"""Estimation shift of batch norms, layer by layer (XBNBlock, Definitions 1 and 2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normrepro import norms
from normrepro.data.base import Batches
from normrepro.diagnostics.base import Epoch, layers, untouched
from normrepro.distributed import Ranks
from normrepro.norms import core


class Shift:
    """Estimation shift magnitudes over the validation set, after each epoch.

        ESM_mu = ||mu_est - mu||_2,  ESM_sigma = ||sqrt(var_est) - sqrt(var)||_2

    est: the running statistics; mu, var (biased): of a layer's input over the whole validation
    set. The definition does not say how the layers before normalize then. By their running
    statistics (`earlier="evaluation"`, ours: only so do errors accumulate, and it is what the next
    layer meets at evaluation), or by the set's own (`earlier="training"`).

    Entry 0 compares the images themselves, training set with validation set, pixel by pixel
    (Figure 3: "layer 0"). Layers without running mean and variance have no shift: None.

    Args:
        earlier: "evaluation" or "training"; the latter takes the whole set as one batch, on one
            process and one device.
    """

    def __init__(self, earlier: str = "evaluation") -> None:
        if earlier not in ("evaluation", "training"):
            raise ValueError(f"earlier={earlier!r} must be 'evaluation' or 'training'")
        self.earlier = earlier
        self.meters: dict[str, Meter] = {}
        self.input: list[float] | None = None  # it never changes

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Meter the inputs of all batch norms while the model is evaluated."""
        if self.earlier == "training":
            yield
            return
        with self._metering(model):
            yield

    def report(self, epoch: Epoch) -> dict[str, Any]:
        """Return `esm_mean` and `esm_std`, a value per layer."""
        if self.earlier == "training":
            with self._metering(epoch.model), _one_batch(epoch.model, epoch.ranks):
                untouched(epoch.model, torch.cat([x for x, _ in epoch.test()]))
        if self.input is None:
            self.input = _between(epoch.images, epoch.test, epoch.ranks)
        none = [None, None]
        found = {n: self.meters[n].shift(epoch.ranks) for n in self.meters}
        rows = [self.input, *(found.get(name, none) for name in layers(epoch.model))]
        return {"esm_mean": [row[0] for row in rows], "esm_std": [row[1] for row in rows]}

    @contextmanager
    def _metering(self, model: nn.Module) -> Iterator[None]:
        known = {n: m for n, m in layers(model).items() if _keeps_both(m)}
        self.meters = {name: Meter(layer) for name, layer in known.items()}
        handles = [known[n].register_forward_pre_hook(m) for n, m in self.meters.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _keeps_both(layer: norms.Normalizer) -> bool:
    return {"running_mean", "running_var"} <= set(layer.replica_buffers)


class Meter:
    """Population statistics of a layer's input, beside the estimates it evaluates with.

    Sums of 1, d = x - mu_est and d^2, in float64, from each batch's mean and variance: they add up
    over batches and processes, and the estimate in the middle keeps them from cancelling where the
    mean is far from 0.
    """

    def __init__(self, layer: norms.Normalizer) -> None:
        self.mean = layer.eval_buffer("running_mean").double().clone()  # (C)
        self.std = layer.eval_buffer("running_var").double().sqrt()
        self.sums = torch.zeros(3, layer.channels, dtype=torch.float64, device=self.mean.device)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add a batch (N, C, *): a forward pre-hook."""
        x = inputs[0].detach().double()
        mean, var = core.moments(x, 1)  # (1, C), biased
        off, count = mean - self.mean, x.numel() // x.shape[1]
        self.sums += count * torch.cat([torch.ones_like(off), off, var + off.square()])

    def shift(self, ranks: Ranks) -> list[float | None]:
        """Return ESM_mu and ESM_sigma; None of a layer that did not run."""
        count, first, second = ranks.sum(self.sums)
        if not count[0]:
            return [None, None]
        off = first / count
        std = (second / count - off.square()).clamp(min=0).sqrt()
        return [float(off.norm()), float((self.std - std).norm())]


@contextmanager
def _one_batch(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let every layer take a batch as one group."""
    found = [m for m in layers(model).values() if m.across_batch]
    if ranks.world > 1 or any(layer.replicas > 1 for layer in found):
        raise ValueError("earlier=training needs one process and batch.devices=1")
    groups = [layer.group for layer in found]
    for layer in found:
        layer.group = None
    try:
        yield
    finally:
        for layer, group in zip(found, groups, strict=True):
            layer.group = group


def _between(one: Callable[[], Batches], other: Callable[[], Batches], ranks: Ranks) -> list[float]:
    """Return the distances of the pixels' means and standard deviations of two sets of images."""
    (mean, std), (mean2, std2) = (_moments(batches, ranks) for batches in (one, other))
    return [float((mean - mean2).norm()), float((std - std2).norm())]


def _moments(batches: Callable[[], Batches], ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return the mean and the (biased) standard deviation of each pixel, in two passes."""
    mean = torch.zeros(())
    for power in (1, 2):
        total, count = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        for x, _ in batches():
            total = total + (x.flatten(1).double() - mean).pow(power).sum(0)
            count += len(x)
        total = ranks.sum(total) / ranks.sum(count.to(total.device))
        mean, last = (total, total) if power == 1 else (mean, total)
    return mean, last.sqrt()

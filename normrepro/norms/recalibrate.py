"""Estimate the population statistics of a trained model's norms anew, as precise batch norm does.

Over batches 1, 2, ... of a loader, with fixed weights, each running statistic s becomes the plain
mean of the values v that training would have moved it towards: s_i = s_(i-1) + (v_i - s_(i-1)) / i.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normrepro.norms.base import Normalizer
from normrepro.norms.pairing import at_home
from normrepro.norms.steps import step

RUNNING = "running_"  # how the buffers that hold population statistics begin
WINDOWS = ("_window", "_count", "pushed")  # and how those end that keep, or count, the last steps'


def recalibrate(model: nn.Module, loader: Iterable[Any], steps: int | None = None) -> nn.Module:
    """Estimate running means and variances (MABN: chi^2) anew, in place; nothing else changes.

    Norms run in training mode on batches of the loader, with the groups and replicas that they
    have; everything else runs as at evaluation, without dropout, since evaluation is what the
    statistics are for. Each batch of the loader counts the same. Norms that do not run
    (auxiliary heads) keep their statistics. Where the training forward itself looks at the running
    statistics (batch renormalization, MABN), it looks at those of the batches so far, at first at
    those that are there: after a conversion that started them anew, recalibrate twice.

    Args:
        model: A model with torch's batch norms or this package's normalizers.
        loader: Batches, or tuples and lists whose first entry is the batch.
        steps: Batches to take; None takes all of the loader.

    Returns:
        The model, in the modes that it was in.

    Raises:
        ValueError: No norm with running statistics, or no batch; or the groups do not divide a
            batch (let the loader drop its last one). The statistics are then as before.
    """
    norms = [m for m in model.modules() if _keeps_statistics(m)]
    if not norms:
        raise ValueError("no norm of the model keeps running statistics: nothing to recalibrate")
    done = 0
    with _only_statistics(model, norms), _averaging(norms) as finish:
        for batch in itertools.islice(loader, steps):
            x = batch[0] if isinstance(batch, tuple | list) else batch
            with step(model), torch.no_grad():
                model(at_home(x, model))
            finish()
            done += 1
        if not done:
            raise ValueError("the loader gave no batch to recalibrate with")
    return model


def _keeps_statistics(module: nn.Module) -> bool:
    if not isinstance(module, _BatchNorm | Normalizer) or not hasattr(module, "momentum"):
        return False
    return any(n.startswith(RUNNING) and b is not None for n, b in module._buffers.items())


@contextmanager
def _only_statistics(model: nn.Module, norms: list[nn.Module]) -> Iterator[None]:
    """Put the norms, and nothing else, in training mode; undo all but the running statistics."""
    modes = {m: m.training for m in model.modules()}
    saved = {m: {n: b.clone() for n, b in m._buffers.items() if b is not None} for m in modes}
    kept: tuple[str, ...] = ()
    model.eval()
    chosen = set(norms)
    for module in modes:  # a normalizer may be made of others
        module.training = module in chosen or (
            isinstance(module, Normalizer) and not chosen.isdisjoint(module.modules())
        )
    for norm in norms:
        for name in saved[norm]:
            if name.endswith(WINDOWS):
                norm._buffers[name].zero_()
    try:
        yield
        kept = (RUNNING,)
    finally:
        for module, mode in modes.items():
            module.training = mode
            for name, buffer in saved[module].items():
                if module not in chosen or not name.startswith(kept):
                    _restore(module, name, buffer)


def _restore(module: nn.Module, name: str, buffer: Tensor) -> None:
    now = module._buffers[name]
    if now.shape == buffer.shape:
        now.copy_(buffer)
    else:  # windows grow with the number of calls
        module._buffers[name] = buffer


@contextmanager
def _averaging(norms: list[nn.Module]) -> Iterator[Any]:
    """Have each norm move its statistics by 1 / i in the i-th step that it runs in."""
    momenta = {norm: norm.momentum for norm in norms}
    steps = dict.fromkeys(norms, 0)
    ran: set[nn.Module] = set()

    def entering(norm: nn.Module, inputs: Any) -> None:
        norm.momentum = 1 / (steps[norm] + 1)
        if isinstance(norm, _BatchNorm):  # moves at once, at every call
            steps[norm] += 1
        ran.add(norm)

    def finish() -> None:
        for norm in ran:
            steps[norm] += isinstance(norm, Normalizer)
        ran.clear()

    handles = [norm.register_forward_pre_hook(entering) for norm in norms]
    try:
        yield finish
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum

"""Numbers that are no numbers: which run has diverged, and which layer shows it first."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normrepro.norms import Normalizer

OVERFLOWS = 30  # assumed: so many halvings take float16's loss scale from 65536 to 6e-5


class Diverged(RuntimeError):
    """The run's numbers are not finite any more; it ends here and is recorded as diverged.

    Args:
        reason: What was seen.
        step: The optimizer step that showed it, counted from 1.
        layer: The first layer concerned, and what of it; None where no layer shows it.
    """

    def __init__(self, reason: str, step: int, layer: str | None = None) -> None:
        super().__init__(f"{reason} at step {step}")
        self.reason, self.step, self.layer = reason, step, layer

    def __str__(self) -> str:
        where = f"; the first layer to show it is {self.layer}" if self.layer else ""
        return f"{self.reason} at step {self.step}{where}"


def require(loss: float, largest: float, step: int) -> None:
    """Refuse a loss, or the running statistics that the step before left, that are not finite.

    Args:
        loss: Of the step under way, over all processes.
        largest: In the running statistics.
        step: Steps done.
    """
    if not math.isfinite(largest):
        raise Diverged("running statistics are not finite", step)
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss}", step + 1)


def require_progress(overflows: int, limit: int | None, step: int) -> None:
    """Refuse more float16 steps in a row that the loss scaler skipped than `overflows` allows."""
    limit = limit or OVERFLOWS
    if overflows >= limit:
        raise Diverged(f"float16 gradients overflowed in {limit} steps in a row", step + 1)


def require_state(layer: str | None, step: int) -> None:
    """Refuse to judge or keep a model with a broken layer (`broken`)."""
    if layer:
        raise Diverged("weights or statistics are not finite", step, layer)


def statistics(model: nn.Module) -> list[Tensor]:
    """Return the running statistics of all normalizers, as they lie there now."""
    return [
        layer._buffers[name]
        for layer in model.modules()
        if isinstance(layer, Normalizer)
        for name in layer.replica_buffers
        if name.startswith("running_")
    ]


def broken(model: nn.Module) -> str | None:
    """Name the first parameter or running statistic that is not finite, in the model's order."""
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and tensor.numel()
    }
    if not tensors:
        return None
    norms = torch._foreach_norm(list(tensors.values()), math.inf)
    largest = torch.stack([norm.double() for norm in norms]).tolist()
    if all(map(math.isfinite, largest)):
        return None
    name = next(n for n, x in zip(tensors, largest, strict=True) if not math.isfinite(x))
    layer, _, tensor = name.rpartition(".")
    return f"{layer or 'the model'} ({tensor})"


def locate(model: nn.Module, loss: Callable[[], Tensor]) -> str | None:
    """Run a batch once more and name the first layer that is not finite.

    Looked at in this order: the state, the outputs in the order of the forward pass, the gradients
    in the order of the backward pass.

    Args:
        model: The model, not wrapped, in the state that it had before the batch.
        loss: Computes the batch's loss (), scaled as in training.
    """
    found: list[str] = []
    handles = [
        module.register_forward_hook(partial(_look, name, found))
        for name, module in model.named_modules()
        if name and not any(module.children())
    ]
    try:
        value = loss()
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # Not backward(): gradients would reach DistributedDataParallel, which expects none.
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for name, gradient in zip(reversed(named), reversed(gradients), strict=True):
        if not found and gradient is not None and not _finite(gradient):
            layer, _, tensor = name.rpartition(".")
            found.append(f"{layer} (gradient of {tensor})")
    return broken(model) or (found[0] if found else None)


def _look(name: str, found: list[str], module: nn.Module, inputs: Any, output: Any) -> None:
    if not isinstance(output, Tensor) or found:
        return
    if not _finite(output):
        found.append(f"{name} (output)")
    elif output.requires_grad:
        output.register_hook(partial(_look_back, name, found))


def _look_back(name: str, found: list[str], gradient: Tensor) -> None:
    if not found and not _finite(gradient):
        found.append(f"{name} (gradient of the output)")


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())

"""`with norms.step(model)`: one optimizer step, in which every normalizer advances once."""

from types import TracebackType

from torch import Tensor, nn

from normrepro.norms.base import Normalizer


class step:
    """Span one optimizer step: all micro-batches, their backward passes, the optimizer's update.

    Running statistics, windows and counters of all normalizers advance once, at the exit, whatever
    happens inside: gradient accumulation, activation checkpointing, a module used several times,
    forwards without backward. An exception, or `skip()`, leaves them as they were.

    Args:
        model: The model (wrapped by DistributedDataParallel or not), or a single layer.
        scale: Factor by which the loss that runs backward is larger than the objective (a
            GradScaler's scale, or the world size where each process takes the mean over its own
            images), so that no gradient statistic is stored in scaled units.

    Raises:
        RuntimeError: A step of this model is open already.

    Example:
        with norms.step(model, scale=scaler.get_scale()) as s:
            scaler.scale(loss(model(x), y)).backward()
            scaler.step(optimizer)
            if overflowed: s.skip()
    """

    def __init__(self, model: nn.Module, scale: float | Tensor = 1.0) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, Normalizer)]
        self.scale = scale
        self._skipped = False

    def skip(self) -> None:
        """Commit nothing at the exit: the optimizer dropped this step."""
        self._skipped = True

    def __enter__(self) -> "step":
        if any(layer._step is not None for layer in self.layers):
            raise RuntimeError("norms.step: a step of this model is open already")
        for layer in self.layers:
            layer._reset_step()
            layer._step = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for layer in self.layers:
            if kind is None and not self._skipped:
                layer.commit()
            layer._reset_step()

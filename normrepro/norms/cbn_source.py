"""A convolution that CBN watches: its inputs are remembered until the layer behind it has run."""

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrepro.norms import core
from normrepro.norms.cbn_patches import mean_patch, slope

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def obstacle(conv: nn.Module) -> str | None:
    """Return why nothing can be compensated behind a module of `KINDS`, or None.

    Raises:
        TypeError: It is not of `KINDS`.
    """
    kind = next((k for k in KINDS if isinstance(conv, k)), None)
    if kind is None:
        known = ", ".join(k.__name__ for k in KINDS)
        raise TypeError(
            f"CBN cannot compensate behind {type(conv).__name__}, only behind {known}: leave the "
            "layer unattached (window 1), or compensate nothing by order=0 (norm.layer.order)"
        )
    for name in ("forward", "_conv_forward"):
        if getattr(type(conv), name, None) is not getattr(kind, name, None):
            return f"{type(conv).__name__} has a {name} of its own"
    return None


class Watcher(Protocol):
    """What a source knows of the layer behind it."""

    training: bool
    channels: int

    def watches(self) -> bool:
        """Tell whether a forward of a convolution is to be remembered."""
        ...


class Record(NamedTuple):
    """One forward of a convolution: its input, and its output or at least that one's shape."""

    input: Tensor
    shape: torch.Size
    output: Tensor | None
    version: int


class Source:
    """A convolution, the channels of a layer that it feeds, and its forwards not yet used.

    A layer fed by one convolution recognizes its output or a view of it; where other operations lie
    between, it takes the oldest forward whose shape fits. Nothing is remembered in evaluation,
    before the window opens, or in a recomputation; the end of a step forgets what was not used.

    Args:
        layer: The normalizer.
        conv: A module of `KINDS`.
        channels: The slice of the layer's channels that are this convolution's.
        pooled: Average pooling without overlap or remainder lies between the two.
    """

    def __init__(self, layer: Watcher, conv: nn.Module, channels: slice, pooled: bool) -> None:
        self.conv, self.channels, self.pooled = conv, channels, pooled
        self.layer = weakref.ref(layer)  # a layer that was replaced goes, whatever hooks remain
        self.axes = len(getattr(conv, "kernel_size", ()))
        self.direct = not pooled and channels.stop - channels.start == layer.channels
        self.records: list[Record] = []
        conv.register_forward_hook(self.remember, with_kwargs=True)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"layer": self.layer(), "records": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        layer = state["layer"]
        self.__dict__ |= state | {"layer": weakref.ref(layer) if layer else _nothing}

    def detach(self) -> None:
        """Take the hook off the convolution."""
        hooks = self.conv._forward_hooks
        for key in [k for k, hook in hooks.items() if hook == self.remember]:
            del hooks[key]
            self.conv._forward_hooks_with_kwargs.pop(key, None)

    # -- memory ------------------------------------------------------------------------------------

    def remember(self, conv: nn.Module, args: tuple, kwargs: dict[str, Any], x: Tensor) -> None:
        """Keep the input of a forward, if the layer will want it: the hook on the convolution."""
        layer = self.layer()
        if layer is None or not layer.training:
            return
        keep = self._keep
        if torch.compiler.is_compiling():  # like the layer itself, this stays out of the graph
            keep = torch.compiler.disable(keep)
        keep(args[0] if args else kwargs["input"], x)

    def _keep(self, y: Tensor, x: Tensor) -> None:
        layer = self.layer()
        if layer is not None and layer.watches() and (not self.axes or x.dim() == self.axes + 2):
            output = x.detach() if self.direct else None
            self.records.append(Record(y.detach(), x.shape, output, _version(x)))

    def take(self, x: Tensor) -> Record | None:
        """Return the forward that x (N, C, *) comes from; it and those before it are forgotten."""
        for i, record in enumerate(self.records):
            if self._fits(record, x):
                del self.records[: i + 1]
                return record
        return None

    def _fits(self, record: Record, x: Tensor) -> bool:
        if record.output is not None and not _unchanged(record, x):
            return False
        there, here = self._space(record, len(x)), x.shape[2:] or (1,) * max(self.axes, 1)
        if there is None:
            return False
        if self.pooled:
            return len(there) == len(here) and not any(map(int.__mod__, there, here))
        return math.prod(there) == math.prod(here)

    def _space(self, record: Record, images: int) -> tuple[int, ...] | None:
        """Return the spatial shape that the convolution put out; a linear layer's rows make one."""
        if self.axes:
            return tuple(record.shape[2:]) if record.shape[0] == images else None
        rows = math.prod(record.shape[:-1])
        return None if rows % images else (rows // images,)

    # -- statistics of E groups ------------------------------------------------------------------

    def parameters(self, dtype: torch.dtype, drift: bool) -> tuple[Tensor, Tensor | None]:
        """Return the present filters (C, D), and the bias (C) where its drift counts."""
        bias = self.conv.bias if drift else None
        weight = self.conv.weight.detach().flatten(1).to(dtype)
        return weight, None if bias is None else bias.detach().to(dtype)

    def inputs(self, record: Record, images: int) -> Tensor:
        """Return the convolution's input (N, Cin, *); a linear layer's rows go to a last axis."""
        y = record.input
        return y if self.axes else y.reshape(images, -1, y.shape[-1]).movedim(-1, 1)

    def derivatives(
        self, record: Record, x: Tensor, mu: Tensor, pick: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Compute pbar (E, conv groups, D) and H (E, C, D).

        Args:
            record: The convolution's forward.
            x: The layer's input from it (N, C, *).
            mu: Means of the groups (E, C).
            pick: Takes a batch (N, ...) to the groups wanted (E, B, ...).
        """
        space, y = self._space(record, len(x)), pick(self.inputs(record, len(x)))
        patch, x = mean_patch(self.conv, y, mu.dtype), pick(x)
        if self.pooled:  # each value stands for all positions of its cell
            x = x.reshape(*x.shape[:3], *(x.shape[3:] or (1,) * len(space)))
            x = F.interpolate(x.flatten(0, 1), space, mode="nearest").unflatten(0, x.shape[:2])
        return patch, slope(self.conv, y, x.reshape(*x.shape[:3], *space), mu, patch)

    def replay(self, inputs: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance (R, S, C) of old inputs under the present weights.

        Args:
            inputs: (R, S, B, Cin, *).
            like: The layer's present input, which tells how far to pool.
        """
        y = inputs.flatten(0, 2).to(self.conv.weight.dtype)
        x = (
            self.conv.forward(y)
            if self.axes
            else self.conv.forward(y.movedim(1, -1)).movedim(-1, 1)
        )
        if self.pooled:
            here = like.shape[2:] or (1,) * (x.dim() - 2)
            pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(here) - 1]
            x = pool(x, [a // b for a, b in zip(x.shape[2:], here, strict=True)])
        mu, v = core.moments(x, inputs.shape[0] * inputs.shape[1])
        return mu.unflatten(0, inputs.shape[:2]), v.unflatten(0, inputs.shape[:2])


def _nothing() -> None:
    """Stand in for the reference to a layer that is gone."""


def _unchanged(record: Record, x: Tensor) -> bool:
    same = record.output.data_ptr() == x.data_ptr() and record.output.numel() == x.numel()
    return same and record.version == _version(x)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version

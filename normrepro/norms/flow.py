"""Follow the outputs of a model's convolutions, while it runs, to the norms that take them in.

Every operation is seen where torch dispatches it, whoever calls it, so a model needs no change. A
tensor that consists of convolutions' outputs carries a tag: which convolution each stretch of its
channels comes from. Tags pass through copies, reshapes that keep channels apart, concatenation of
channels and average pooling over windows that tile the map; any other operation ends them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
COPIES = {aten.alias, aten.clone, aten.detach, aten._to_copy}
RESHAPES = {aten.view, aten._unsafe_view, aten.squeeze, aten.unsqueeze}
POOLS = {aten.avg_pool2d, aten.avg_pool3d}
ADAPTIVE_POOLS = {aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d}
Shape = Sequence[int]


class Source(NamedTuple):
    """A stretch of channels: all outputs of one convolution, or (conv None) of unknown origin."""

    conv: str | None
    channels: int
    pooled: bool = False  # averaged over windows of the map on the way


class Tag(NamedTuple):
    """Where a tensor's channels come from: its axis of channels, and the stretches along it."""

    axis: int
    sources: tuple[Source, ...]


class Flow(TorchDispatchMode):
    """Watches the operations of one run.

    Attributes:
        sources: Norm -> where its input's channels come from; None where that is not known.
        feeds: Convolution -> the norms that take in its output.
        elsewhere: Convolutions whose output something else takes in as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, tuple[Source, ...] | None] = {}
        self.feeds: dict[str, set[str]] = {}
        self.elsewhere: set[str] = set()
        self._tags: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._depth = 0  # of norms whose forward is under way: they may do what they like

    # -- hooks on modules --------------------------------------------------------------------------

    def leaving_conv(self, name: str) -> Callable[..., None]:
        """Return the hook that tags a convolution's output."""

        def hook(conv: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                axis = output.dim() - 1 - len(getattr(conv, "kernel_size", ()))
                self._put(output, Tag(axis, (Source(name, output.shape[axis]),)))

        return hook

    def entering_norm(self, name: str) -> Callable[..., None]:
        """Return the hook that reads the tag of a norm's input."""

        def hook(norm: nn.Module, inputs: Any) -> None:
            tag = self._get(inputs[0]) if inputs else None
            sources = tag.sources if tag is not None and tag.axis == 1 else None
            if self.sources.setdefault(name, sources) != sources:  # calls differ
                self.sources[name] = None
            for conv in _convs(tag):
                self.feeds.setdefault(conv, set()).add(name)
            self._depth += 1

        return hook

    def leaving_norm(self, norm: nn.Module, inputs: Any, output: Any) -> None:
        """Note that a norm's forward is over."""
        self._depth -= 1

    def escape(self) -> None:
        """Note the convolutions whose outputs outlive the run: the model returned or kept them."""
        for _, tag in list(self._tags.values()):
            self.elsewhere.update(_convs(tag))

    # -- tags --------------------------------------------------------------------------------------

    def _put(self, tensor: Tensor, tag: Tag) -> None:
        self._tags[tensor] = (tensor._version, tag)

    def _get(self, tensor: Any) -> Tag | None:
        """Return a tensor's tag, unless it was changed in place since it got it."""
        version, tag = self._tags.get(tensor, (0, None)) if torch.is_tensor(tensor) else (0, None)
        return tag if tag is not None and tensor._version == version else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        taken = () if self._depth else tree_leaves((args, kwargs))
        tags = [tag for t in taken if (tag := self._get(t)) is not None]
        out = func(*args, **(kwargs or {}))
        if tags:
            tag = self._follow(func.overloadpacket, args, out)
            if tag is not None:
                self._put(out, tag)
            else:
                self.elsewhere.update(conv for tag in tags for conv in _convs(tag))
        return out

    def _follow(self, op: Any, args: tuple, out: Any) -> Tag | None:
        """Return the tag of an operation's result, None where channels do not simply pass."""
        if op is aten.cat:
            return self._side_by_side(*args)
        tag = self._get(args[0])
        if tag is None or not torch.is_tensor(out):
            return None
        before, after = args[0].shape, out.shape
        if op in COPIES:
            return tag
        if op in RESHAPES:
            return _reshaped(tag, before, after)
        if op is aten.transpose or op is aten.permute:
            return Tag(_moved(op, args, tag.axis, len(before)), tag.sources)
        if tag.axis == 1 and before[:2] == after[:2] and _averages(op, args, before, after):
            return Tag(1, tuple(s._replace(pooled=s.conv is not None) for s in tag.sources))
        return None

    def _side_by_side(self, tensors: Sequence[Tensor], dim: int = 0) -> Tag | None:
        sources: list[Source] = []
        for tensor in tensors:
            axis = dim % tensor.dim()
            tag = self._get(tensor) or Tag(axis, (Source(None, tensor.shape[axis]),))
            if tag.axis != axis:
                return None
            sources += tag.sources
        return Tag(axis, tuple(sources))


def _convs(tag: Tag | None) -> list[str]:
    return [s.conv for s in tag.sources if s.conv is not None] if tag else []


def _reshaped(tag: Tag, before: Shape, after: Shape) -> Tag | None:
    if tag.axis == 1 and before[:2] == after[:2]:
        return tag
    if tag.axis == len(before) - 1 and len(after) > 1 and before[-1] == after[-1]:
        return Tag(len(after) - 1, tag.sources)
    return None


def _moved(op: Any, args: tuple, axis: int, dims: int) -> int:
    if op is aten.permute:
        return [d % dims for d in args[1]].index(axis)
    one, other = (d % dims for d in args[1:3])
    return {one: other, other: one}.get(axis, axis)


def _averages(op: Any, args: tuple, before: Shape, after: Shape) -> bool:
    """Tell whether an operation averages over windows that tile the map."""
    if op is aten.mean:
        return math.prod(after[2:]) == 1
    if op in ADAPTIVE_POOLS:
        return all(b % a == 0 for b, a in zip(before[2:], after[2:], strict=True))
    if op not in POOLS:
        return False
    kernel, stride, padding, ceil, _, divisor = (*args[1:], *[None] * 6)[:6]
    tiles = not stride or list(stride) == list(kernel)
    return tiles and not any(padding or ()) and not ceil and divisor is None

"""What all normalizers share: arguments, the (R, G, B) layout, state that advances once per step.

A batch (N, C, *) on one process holds the images of R replicas, one after another; each replica's
share is cut into groups of `group` consecutive images. Running state is kept per replica: a buffer
is (C) where replicas == 1, else (R, C).

How state advances. A training forward never writes to a buffer that a later forward of the same
step reads: it puts what it saw into `_seen` (and its backward into `_felt`); `commit` moves the
buffers. Inside `with norms.step(model)` that happens once, at the exit; a forward that is
recomputed in backward (activation checkpointing) sees the same buffers, gives the same bits, and is
recognized, so it is not counted twice. Outside, every training forward commits at once.
"""

from typing import Any

import torch
from torch import Tensor, nn

from normrepro.norms.arguments import integer, number

Stats = dict[str, Tensor]


class Normalizer(nn.Module):
    """Base class of all layers: x (N, C, *) -> same shape, dtype and memory format.

    Args:
        channels: C.
        group: Images per set of statistics (B); None takes a replica's whole share.
        replicas: Devices of the protocol that this process stands for (R); N must be a multiple.
        eps: Added to the variance.
        affine: Learn gamma (`weight`, initially 1) and beta (`bias`, initially 0).
    """

    _step: Any  # the open `norms.step`, or None
    _seen: list[tuple[tuple[int, ...], Stats]]  # shape and statistics of each call of the step
    _felt: dict[int, Stats]  # backward statistics of the calls that had a backward
    across_batch = True  # statistics are taken over several images
    wants_conv = False  # `convert` looks for the convolution before the layer and calls `attach`
    linear = True  # at inference y = scale x + shift per channel, so `fold` applies
    # "first": replica 0's state, as rank 0 evaluates in the released codes; "mean": their mean
    eval_state = "first"

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        integer(channels=channels, replicas=replicas, group=1 if group is None else group)
        number(0, eps=eps)
        self.channels = self.num_features = channels
        self.group, self.replicas, self.eps, self.affine = group, replicas, eps, affine
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.replica_buffers: tuple[str, ...] = ()
        self._reset_step()

    # -- forward -----------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *).

        Raises:
            ValueError: Wrong rank, channels or dtype, or (in training) a batch that the groups do
                not divide.
        """
        self.check(x)
        if not self.training:
            return self.infer(x)
        if torch.compiler.is_compiling():  # state moves in Python: training stays out of the graph
            return torch.compiler.disable(self._train)(x)
        return self._train(x)

    def check(self, x: Tensor) -> None:
        """Refuse what is no batch of this layer: ValueError on another rank, channels or dtype."""
        if x.dim() < 2 or x.shape[1] != self.channels:
            raise ValueError(f"expected (N, {self.channels}, *), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"expected a batch of floats, got the dtype {x.dtype}")

    def _train(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.rows(x))

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize a training batch of `rows` = M groups; a layer's own equations stand here."""
        raise NotImplementedError(type(self).__name__)

    def infer(self, x: Tensor) -> Tensor:
        """Apply the layer as at inference."""
        scale, shift = self.inference_affine()
        shape = (1, -1) + (1,) * (x.dim() - 2)
        y = torch.addcmul(shift.view(shape), x.to(scale.dtype), scale.view(shape))
        return y.to(x.dtype)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), both (C), of a layer that is affine at inference."""
        mean, inv = self.inference_stats()
        scale = inv if self.weight is None else inv * self.weight
        shift = torch.zeros_like(scale) if self.bias is None else self.bias
        return scale, shift if mean is None else shift - mean * scale

    def inference_stats(self) -> tuple[Tensor | None, Tensor]:
        """Return the mean (C) or None, and the factor 1/std (C), that inference uses."""
        raise NotImplementedError(type(self).__name__)

    # -- layout ------------------------------------------------------------------------------------

    def rows(self, x: Tensor) -> int:
        """Return M, the number of groups in a training batch, or say what does not divide."""
        n, r = x.shape[0], self.replicas
        if x.numel() == 0:
            raise ValueError(
                f"a training batch of shape {tuple(x.shape)} has no values to normalize"
            )
        if n % r:
            raise ValueError(
                f"{n} images do not divide over {r} replicas; change batch.total or batch.devices"
            )
        share, group = n // r, self.group or n // r
        if share % group:
            raise ValueError(
                f"group={group} (batch.norm) does not divide the {share} images of a replica; "
                "drop the last incomplete batch or choose another group"
            )
        return n // group

    def per_replica(self, stat: Tensor) -> Tensor:
        """View a statistic (M, C) as (R, G, C)."""
        return stat.view(self.replicas, -1, stat.shape[-1])

    # -- state -------------------------------------------------------------------------------------

    def add_state(self, name: str, value: Tensor) -> None:
        """Register a buffer that each replica keeps: `value` without the replica axis."""
        if self.replicas > 1:
            value = value.expand(self.replicas, *value.shape).clone()
        self.register_buffer(name, value)
        self.replica_buffers += (name,)

    def state(self, name: str) -> Tensor:
        """Return a per-replica buffer as (R, ...): a view, so writing to it writes the buffer."""
        buffer = getattr(self, name)
        return buffer if self.replicas > 1 else buffer.unsqueeze(0)

    def eval_buffer(self, name: str) -> Tensor:
        """Return the state that inference uses, without the replica axis."""
        buffer = self.state(name)
        return buffer.mean(0) if self.eval_state == "mean" else buffer[0]

    def attach(self, conv: nn.Module, channels: slice | None = None, pooled: bool = False) -> None:
        """Tell the layer which convolution feeds it, or a stretch of its channels; most ignore it.

        Args:
            conv: The convolution or linear layer.
            channels: The layer's channels that all outputs of the convolution make up; None: all.
            pooled: The output is averaged over windows of the map on its way.
        """

    def detach(self) -> None:
        """Take off the convolutions what serves this layer alone, before it is replaced."""

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over a torch BatchNorm's running statistics; False where they mean nothing here."""
        return not self._buffers

    def call_number(self, x: Tensor, stats: Stats) -> int:
        """Return which call of the step this training forward is.

        A forward inside a running backward is a recomputation: it gets the number of the call that
            it repeats.
        """
        return self._repeated(x, stats) if self._recomputing() else len(self._seen)

    def observe(self, x: Tensor, stats: Stats) -> None:
        """Note the statistics of a training forward, after it used the state; once."""
        if self._recomputing():
            return
        self._seen.append((tuple(x.shape), stats))
        if self._step is None:
            self.commit()

    def _recomputing(self) -> bool:
        return bool(self._seen) and torch._C._current_graph_task_id() != -1

    def _repeated(self, x: Tensor, stats: Stats) -> int:
        """Find which call a recomputed one repeats: by shape, then by value."""
        if len(self._seen) == 1:
            return 0
        calls = [i for i, (shape, _) in enumerate(self._seen) if shape == tuple(x.shape)]
        if len(calls) > 1:
            calls = [
                i
                for i in calls
                if all(torch.equal(v, self._seen[i][1][k]) for k, v in stats.items())
            ]
        if not calls:
            raise RuntimeError(
                "a recomputed forward met an input that the first forward had not seen"
            )
        return calls[0]

    def feel(self, call: int, stats: Stats) -> None:
        """Note a call's backward statistics, in units of the unscaled loss; several add up."""
        known = self._felt.get(call, {})
        self._felt[call] = {k: v + known[k] if k in known else v for k, v in stats.items()}
        if self._step is None:
            self.commit()

    @property
    def loss_scale(self) -> float | Tensor:
        """Factor by which the loss under way is larger than the objective."""
        return 1.0 if self._step is None else self._step.scale

    @torch.no_grad()
    def commit(self) -> None:
        """Move the buffers by what was seen and felt since the last commit."""
        if self._seen:
            self.advance([stats for _, stats in self._seen])
        if self._felt:
            self.advance_backward(self._felt)
        self.__dict__ |= {"_seen": [], "_felt": {}}

    def advance(self, seen: list[Stats]) -> None:
        """Move the forward state; `seen` has the statistics of each call of the step."""

    def advance_backward(self, felt: dict[int, Stats]) -> None:
        """Move the backward state; `felt` has the statistic of each call that had a backward."""

    def _reset_step(self) -> None:
        # Past nn.Module's __setattr__, which takes longer than the step of a small layer.
        self.__dict__ |= {"_step": None, "_seen": [], "_felt": {}}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_step": None, "_seen": [], "_felt": {}}

    def extra_repr(self) -> str:
        """Show the arguments in `print(model)`."""
        shown = ("group", "replicas", "eps", "affine")
        return ", ".join([str(self.channels), *(f"{k}={getattr(self, k)}" for k in shown)])


def move(state: Tensor, new: Tensor, factor: float | Tensor) -> None:
    """Move a running statistic in place: state += factor (new - state)."""
    if isinstance(factor, Tensor):
        factor = factor.to(state.dtype)
    state.lerp_(new.to(state.dtype), factor)


def across_calls(seen: list[Stats], name: str) -> Tensor:
    """Average a statistic over the calls of a step; a single call's passes untouched."""
    if len(seen) == 1:
        return seen[0][name]
    return torch.stack([stats[name] for stats in seen]).mean(0)

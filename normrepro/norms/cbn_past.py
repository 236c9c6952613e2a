"""What CBN records of a group, and how it moves that to the present weights (CBN eqs. 7, 8, 15)."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normrepro.norms.base import Stats
from normrepro.norms.cbn_patches import products
from normrepro.norms.cbn_rings import Ringed
from normrepro.norms.cbn_source import Source, obstacle

log = logging.getLogger("normrepro")
RINGS = {0: ("mean", "base"), 1: ("mean", "base", "linear"), 2: ()}  # per channel, of each order
Pair = tuple[Tensor, Tensor]
Filters = list[tuple[Tensor, Tensor | None]]


class Compensated(Ringed):
    """A normalizer that knows its convolutions and keeps statistics of groups to move along.

    With v = nu - mu^2, the bias b, pbar and H of `cbn_patches`, a group recorded under the weights
    w_s has, to first order, under the weights w
        mu(w) = mu + d,  d = (<pbar, w> + b) - (<pbar, w_s> + b_s)
        v(w) = (v - <H, w_s>) + <H, w> - d^2,
    which is eqs. 7 and 8 rearranged. The brackets with w_s are numbers per channel (the rings
    `linear` and `base`), so no old weights are kept. Without the bias's drift b and b_s are left
    out. Order 2 keeps a group's inputs instead.

    Args:
        args: As for every normalizer.
        order: 0, 1 or 2.
        drift: Whether a change of the bias counts.
    """

    def __init__(self, *args: Any, order: int, drift: bool) -> None:
        super().__init__(*args)
        self.order, self.drift = order, drift
        self.sources: list[Source] = []
        self._told = False
        for name in RINGS[order]:
            self.add_ring(f"window_{name}", torch.zeros(0))

    def attach(self, conv: nn.Module, channels: slice | None = None, pooled: bool = False) -> None:
        """Watch a convolution that feeds this layer, or a slice of its channels.

        Args:
            conv: Conv1d, Conv2d, Conv3d or Linear; one that computes otherwise than torch's is
                left alone, with a line in the log.
            channels: The layer's channels that all outputs of the convolution make up; None: all.
            pooled: Average pooling without overlap or remainder lies between the two.

        Raises:
            TypeError: Another kind of module, such as a transposed convolution.
            ValueError: The slice has not as many channels as the convolution puts out, or some of
                them have another convolution already.
        """
        if self.order == 0:
            return
        reason = obstacle(conv)
        if reason is not None:
            log.warning("CBN: %s; the layer behind it keeps a window of 1", reason)
            return
        start, stop, _ = (channels or slice(None)).indices(self.channels)
        others = [(s.channels.start, s.channels.stop) for s in self.sources]
        if any(s.conv is conv for s in self.sources) and (start, stop) in others:
            return
        width = conv.weight.shape[0]
        if stop - start != width or any(start < b and a < stop for a, b in others):
            raise ValueError(
                f"a convolution with {width} outputs cannot feed channels {start}:{stop} of "
                f"{self.channels}, of which {others} are fed by others"
            )
        self.drop_rings(())
        for name in ("patch", "slope") if self.order == 1 else ("input",):
            self.add_ring(f"window_{name}{len(others)}", self.running_mean, name == "slope")
        self.sources.append(Source(self, conv, slice(start, stop), pooled))

    def detach(self) -> None:
        """Let go of the convolutions; from now on the window is 1."""
        for source in self.sources:
            source.detach()
        self.sources = []
        self.drop_rings(tuple(n for n in self.rings if n[-1].isdigit()))

    def opened(self) -> bool:
        """Tell whether windows are in use already."""
        raise NotImplementedError(type(self).__name__)

    def watches(self) -> bool:
        """Tell whether a forward of a convolution is to be remembered."""
        return not self._recomputing() and self.opened()

    def _reset_step(self) -> None:
        super()._reset_step()
        for source in getattr(self, "sources", ()):
            source.records.clear()

    # -- recording ---------------------------------------------------------------------------------

    def filters(self, dtype: torch.dtype) -> Filters:
        """Return the present filters (C, D) and the bias (C) of each convolution, as constants."""
        return [s.parameters(dtype, self.drift) for s in self.sources if self.order == 1]

    def entries(self, x: Tensor, call: int, own: Pair, keep: int, filters: Filters) -> Stats | None:
        """Return what the rings take of a call's last `keep` groups, None if it has no window.

        Args:
            x: The batch.
            call: Its number; a recomputed call gets what it noted the first time.
            own: mu and v (R, G, C) of its groups.
            keep: Number of groups.
            filters: The present ones.
        """
        if self._recomputing():
            noted = self._seen[call][1]
            return noted if any(name in noted for name in self.rings) else None
        records = [source.take(x) for source in self.sources]
        if self.order and (not records or None in records):
            if records and not self._told:
                self._told = True
                log.warning("CBN: window 1 where the input is not the attached conv's output")
            return None
        last = slice(own[0].shape[1] - keep, None)
        mu, v = (stat[:, last] for stat in own)
        if self.order == 0:
            return {"window_mean": mu, "window_base": v}
        pick = partial(_pick, (self.replicas, own[0].shape[1], -1), last)
        found = zip(self.sources, records, strict=True)
        if self.order == 2:
            inputs = (pick(s.inputs(r, len(x))).unflatten(0, mu.shape[:2]) for s, r in found)
            return self._of_one_shape({f"window_input{i}": y for i, y in enumerate(inputs)})
        noted = {"window_mean": mu, "window_base": v.clone(), "window_linear": torch.zeros_like(mu)}
        for i, (source, record) in enumerate(found):
            at = source.channels
            pair = source.derivatives(record, x[:, at], mu[..., at].flatten(0, 1), pick)
            patch, slope = (d.unflatten(0, mu.shape[:2]) for d in pair)
            noted |= {f"window_patch{i}": patch, f"window_slope{i}": slope}
            linear, square = products(patch, slope, *filters[i])
            noted["window_linear"][..., at] = linear
            noted["window_base"][..., at] -= square
        return noted

    def _of_one_shape(self, noted: Stats) -> Stats:
        for name, y in noted.items():
            shapes = {tuple(s[name].shape[2:]) for _, s in self._seen if name in s}
            if self.pushed.numel():
                shapes.add(tuple(self.state(name).shape[3:]))
            if not shapes <= {tuple(y.shape[2:])}:
                raise ValueError(
                    f"order=2 keeps the convolution's inputs, which must have one shape: had "
                    f"{shapes}, met {tuple(y.shape[2:])}; set norm.layer.order=1"
                )
        return noted

    # -- moving ------------------------------------------------------------------------------------

    def past(self, call: int, own: Pair, x: Tensor, filters: Filters) -> Pair:
        """Return mu and v (R, n, C) of a call's recorded groups under the present weights."""
        if not self.count(call):
            return own[0][:, :0], own[1][:, :0]
        if self.order == 2:
            return tuple(self.oldest_first(stat, call) for stat in self._replayed(call, x))
        mu, v = (self.ring(f"window_{name}", call) for name in ("mean", "base"))
        if self.order == 1:
            drift, v = -self.ring("window_linear", call), v.clone()
            for i, source in enumerate(self.sources):
                rings = (self.ring(f"window_{name}{i}", call) for name in ("patch", "slope"))
                linear, square = products(*(r.to(own[0].dtype) for r in rings), *filters[i])
                drift[..., source.channels] += linear
                v[..., source.channels] += square
            mu, v = mu + drift, v - drift.square()
        return self.oldest_first(mu, call), self.oldest_first(v, call)

    def _replayed(self, call: int, x: Tensor) -> Pair:
        shape = (self.replicas, self.count(call), self.channels)
        mu, v = (torch.zeros(shape, dtype=self.running_mean.dtype, device=x.device) for _ in "mv")
        for i, source in enumerate(self.sources):
            found = source.replay(self.ring(f"window_input{i}", call), x)
            mu[..., source.channels], v[..., source.channels] = found
        return mu, v

    def covered(self) -> Tensor | None:
        """Return which channels (C) have a convolution, None where all have or need none."""
        fed = sum(s.channels.stop - s.channels.start for s in self.sources)
        if self.order == 0 or fed == self.channels:
            return None
        mask = torch.zeros(self.channels, dtype=torch.bool, device=self.running_mean.device)
        for source in self.sources:
            mask[source.channels] = True
        return mask


def _pick(shape: tuple[int, int, int], last: slice, batch: Tensor) -> Tensor:
    """Return the last groups of each replica (E, B, ...) of a batch (N, ...)."""
    return batch.unflatten(0, shape)[:, last].flatten(0, 1)

"""Rings: what a normalizer keeps of the last groups that it met."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normrepro.norms.base import Normalizer, Stats


class Ringed(Normalizer):
    """A normalizer that keeps entries of the last k - 1 groups in rings.

    A ring `name` is a buffer (K, k - 1, ...), or (R, K, k - 1, ...), empty before the first entry;
    K is the number of calls of the layer within a step (1, unless the module is used several
    times), each with a window of its own. `pushed` (K) counts the entries ever written: entry i
    stands at place i mod (k - 1).

    Counters are also known to Python, so that no step asks the device for them; a counter that was
    changed from outside (a loaded state_dict) is read once.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rings: tuple[str, ...] = ()
        self.large_rings: tuple[str, ...] = ()
        self._numbers: dict[str, tuple[Tensor, int, Any]] = {}
        self.register_buffer("pushed", torch.zeros(0, dtype=torch.long))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_numbers": {}}

    def add_ring(self, name: str, like: Tensor, large: bool = False) -> None:
        """Register an empty ring of the dtype and on the device of a tensor.

        Args:
            name: Of the ring, and of its entries in what `push` is given.
            like: The tensor.
            large: Its entries are tensors that nobody else holds; where they fill the ring they
                take its place and are not copied.
        """
        self.rings += (name,)
        self.large_rings += (name,) if large else ()
        self.add_state(name, like.new_zeros(0))

    def drop_rings(self, names: tuple[str, ...]) -> None:
        """Forget some rings, and the entries of all others, which make no sense without."""
        for name in names:
            del self._buffers[name]
        self.rings = tuple(n for n in self.rings if n not in names)
        self.large_rings = tuple(n for n in self.large_rings if n not in names)
        self.replica_buffers = tuple(n for n in self.replica_buffers if n not in names)
        empty = (self.replicas, 0) if self.replicas > 1 else (0,)
        for name in self.rings:
            self._buffers[name] = self._buffers[name].new_zeros(empty)
        self.pushed = self.pushed.new_zeros(0)

    def ring(self, name: str, call: int) -> Tensor:
        """Return the entries (R, n, ...) of a ring that are there, in the order of their places."""
        return self.state(name)[:, call, : self.count(call)]

    def oldest_first(self, entries: Tensor, call: int) -> Tensor:
        """Bring (R, n, ...) from the order of places into the order of time."""
        pushed, n = self.number("pushed")[call], entries.shape[1]
        return entries if pushed == n else entries.roll(-(pushed % n), 1)

    def count(self, call: int) -> int:
        """Return n, the number of entries in a call's window."""
        pushed = self.number("pushed")
        return min(pushed[call], self.ring_length()) if call < len(pushed) else 0

    def ring_length(self) -> int | None:
        """Return k - 1 as the rings have it, None before the first entry."""
        return self.state(self.rings[0]).shape[2] if self.pushed.numel() else None

    def push(self, call: int, new: Stats, length: int) -> None:
        """Write the entries (R, g, ...), g <= length = k - 1, of a call over its oldest."""
        self._make_room(call + 1, new, length)
        pushed = self.number("pushed")
        start = pushed[call] % length
        for name, entries in ((n, new[n]) for n in self.rings):
            ring, g = self.state(name), entries.shape[1]
            if name in self.large_rings and ring.shape[:3] == (self.replicas, 1, g) and start == 0:
                whole = entries.unsqueeze(1).to(ring.dtype)
                setattr(self, name, whole if self.replicas > 1 else whole[0])
                continue
            first = min(g, length - start)
            ring[:, call, start : start + first].copy_(entries[:, :first])
            ring[:, call, : g - first].copy_(entries[:, first:])
        total = pushed[call] + entries.shape[1]
        self.pushed[call].fill_(total)
        self._know("pushed", [*pushed[:call], total, *pushed[call + 1 :]])

    def _make_room(self, calls: int, new: Stats, length: int) -> None:
        for name in self.rings:
            old, entry = self.state(name), new[name].shape[2:]
            if not self.pushed.numel() or old.shape[1] < calls:
                ring = old.new_zeros(self.replicas, calls, length, *entry)
                ring[:, : len(self.pushed)] = old if self.pushed.numel() else 0
                setattr(self, name, ring if self.replicas > 1 else ring[0])
        more = max(0, calls - len(self.pushed))
        if more:
            self.pushed = F.pad(self.pushed, (0, more))

    def number(self, name: str) -> Any:
        """Return a counter buffer as Python numbers."""
        buffer, known = self._buffers[name], self._numbers.get(name)
        if known is None or known[0] is not buffer or known[1] != buffer._version:
            self._know(name, buffer.tolist())
        return self._numbers[name][2]

    def _know(self, name: str, value: Any) -> None:
        buffer = self._buffers[name]
        self._numbers[name] = (buffer, buffer._version, value)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        """Take rings of any number of calls."""
        for name in ("pushed", *self.rings):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                self._buffers[name] = self._buffers[name].new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

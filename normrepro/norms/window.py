"""Simple moving averages over the last m values, without loops or host synchronization."""

import torch
from torch import Tensor

from normrepro.norms.base import Normalizer


def slide(window: Tensor, count: Tensor, new: Tensor) -> Tensor:
    """Average each new value with the values before it, m in all, or as many as there are.

    Args:
        window: (R, m, C), the newest entry last, zeros where there is none yet.
        count: Number of entries of the window (0-d integer).
        new: (R, G, C), in time order.

    Returns:
        (R, G, C): entry i is the mean of the last m values up to new[:, i] (MABN eq. 13).
    """
    m, g = window.shape[1], new.shape[1]
    sums = torch.cat([window, new], 1).unfold(1, m, 1)[:, 1:].sum(-1)
    there = (count + torch.arange(1, g + 1, device=new.device)).clamp(max=m)
    return sums / there.view(1, g, 1).to(new.dtype)


def push(window: Tensor, new: Tensor) -> Tensor:
    """Return the window (R, m, C) with new values (R, G, C) appended and the oldest dropped."""
    return torch.cat([window, new], 1)[:, -window.shape[1] :]


class Windowed(Normalizer):
    """A normalizer that remembers statistics of the last `memory` groups.

    A window `name` is the buffer `<name>_window` (K, m, C), or (R, K, m, C), with the newest entry
    last, and `<name>_count` (K), the number of its entries; K is the number of calls of the layer
    within a step (1, unless the module is used several times), each with a window of its own.
    """

    windows: tuple[str, ...] = ()

    def add_window(self, name: str, memory: int | None) -> None:
        """Register an empty window; without a memory its length is settled by `make_windows`."""
        self.windows += (name,)
        self.add_state(f"{name}_window", torch.zeros(0, memory or 0, self.channels))
        self.register_buffer(f"{name}_count", torch.zeros(0, dtype=torch.long))

    def make_windows(self, calls: int, memory: int) -> None:
        """Make room for the calls of a step; `memory` counts where the length is open."""
        for name in self.windows:
            old = self.state(f"{name}_window")
            if old.shape[1] >= calls:
                continue
            new = old.new_zeros(self.replicas, calls, old.shape[2] or memory, self.channels)
            if old.shape[1]:
                new[:, : old.shape[1]] = old
            count = getattr(self, f"{name}_count")
            setattr(self, f"{name}_window", new if self.replicas > 1 else new[0])
            setattr(self, f"{name}_count", torch.cat([count, count.new_zeros(calls - len(count))]))

    def window_average(self, name: str, call: int, new: Tensor) -> Tensor:
        """Return the moving averages that end with each new value (R, G, C)."""
        count = getattr(self, f"{name}_count")[call]
        return slide(self.state(f"{name}_window")[:, call], count, new)

    def push_window(self, name: str, call: int, new: Tensor) -> None:
        """Append values, unless one of them is not finite (a step that AMP will drop)."""
        window, count = self.state(f"{name}_window")[:, call], getattr(self, f"{name}_count")[call]
        fine = new.isfinite().all()
        window.copy_(torch.where(fine, push(window, new), window))
        count.copy_((count + new.shape[1] * fine).clamp(max=window.shape[1]))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        """Take windows of any number of calls and any length."""
        for name in self.windows:
            for buffer in (f"{name}_window", f"{name}_count"):
                saved = state_dict.get(prefix + buffer)
                if saved is not None:
                    self._buffers[buffer] = self._buffers[buffer].new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""A convolution (or linear layer) as plain products of patches with filters, for CBN."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor


class Conv:
    """x_o = w_o . patch + b_o, for any number of spatial axes; none is a linear layer.

    Patches are (conv groups, D, images x positions) with D = C_in / groups * kernel size.
    """

    def __init__(
        self, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
    ) -> None:
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def padded(self, x: Tensor) -> Tensor:
        """Surround every spatial axis with zeros."""
        p = self.padding
        out = x.new_zeros(*x.shape[:2], *(size + 2 * p for size in x.shape[2:]))
        out[(..., *(slice(p, p + size) for size in x.shape[2:]))] = x
        return out

    def out_size(self, x: Tensor, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial shape of the output."""
        reach = [self.dilation * (k - 1) + 1 for k in kernel]
        free = [n + 2 * self.padding - r for n, r in zip(x.shape[2:], reach, strict=True)]
        return tuple(n // self.stride + 1 for n in free)

    def windows(self, x: Tensor, kernel: tuple[int, ...]) -> Iterator[tuple[int, tuple]]:
        """Yield each kernel position and the index of the padded values that it touches."""
        out = self.out_size(x, kernel)
        for k, offset in enumerate(itertools.product(*(range(size) for size in kernel))):
            starts = [self.dilation * o for o in offset]
            ends = [s + self.stride * (n - 1) + 1 for s, n in zip(starts, out, strict=True)]
            steps = (slice(s, e, self.stride) for s, e in zip(starts, ends, strict=True))
            yield k, (..., *steps)

    def patches(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Cut x (B, C_in, *) into patches."""
        images, channels = x.shape[:2]
        values = self.padded(x)
        parts = [
            values[index].reshape(images, channels, -1) for _, index in self.windows(x, kernel)
        ]
        stacked = torch.stack(parts, dim=2)  # (B, C_in, K, positions)
        grouped = stacked.reshape(images, self.groups, -1, stacked.shape[-1])
        return grouped.permute(1, 2, 0, 3).flatten(2)

    def group_of(self, weight: Tensor, o: int) -> int:
        """Conv group of an output channel."""
        return o // (weight.shape[0] // self.groups)

    def apply(self, patches: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs, one row per channel: (C_out, m)."""
        rows = [w.flatten() @ patches[self.group_of(weight, o)] for o, w in enumerate(weight)]
        out = torch.stack(rows)
        return out if bias is None else out + bias[:, None]

    def weight_gradient(self, patches: Tensor, weight: Tensor, gx: Tensor) -> Tensor:
        """dL/dw from gx = dL/dx as rows (C_out, m)."""
        grads = [patches[self.group_of(weight, o)] @ g for o, g in enumerate(gx)]
        return torch.stack(grads).view_as(weight)

    def input_gradient(self, x: Tensor, weight: Tensor, gx: Tensor) -> Tensor:
        """dL/d(input) from gx (B, C_out, *)."""
        kernel = tuple(weight.shape[2:])
        filters = weight.flatten(2) if kernel else weight[..., None]
        padded = torch.zeros_like(self.padded(x))
        width = weight.shape[1]
        for k, index in self.windows(x, kernel):
            for o in range(weight.shape[0]):
                first = self.group_of(weight, o) * width
                for i in range(width):
                    padded[:, first + i][index] += filters[o, i, k] * gx[:, o]
        p = self.padding
        return padded[(..., *(slice(p, p + size) for size in x.shape[2:]))]

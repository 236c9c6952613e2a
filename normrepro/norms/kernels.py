"""The arithmetic of `core.py` in C (kernels.c), for float32 and float64 batches on a CPU.

The library is built once, at first use, by the system's C compiler, and kept in the user's cache
folder under a name that holds everything it depends on. It runs on the threads of torch's own OpenMP
runtime, is bound by ctypes and so fits any version of torch. Where there is no compiler, or the build
fails, `usable` says no and `eager` does the work.

Switch off by the environment variable NORMREPRO_KERNELS=0, or by `enable(False)`.
"""

import ctypes
import os
from functools import cache, lru_cache

import torch
from torch import Tensor

from normrepro.norms.building import library
from normrepro.norms.layout import dense, empty_like, is_channels_last

_enabled = os.environ.get("NORMREPRO_KERNELS", "1").lower() not in ("0", "false", "off", "no")


class Shape(ctypes.Structure):
    """A batch as the C functions see it."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("M", "B", "C", "S")),
        ("last", ctypes.c_int),
        ("threads", ctypes.c_int),
    ]


def enable(on: bool = True) -> None:
    """Use the compiled functions where they can be had, or (False) only torch's operations."""
    global _enabled
    _enabled = on


def usable(x: Tensor) -> bool:
    """Tell whether the compiled functions take this batch; the first call builds them."""
    return (
        _enabled
        and x.is_cpu
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.numel() > 0
        and _functions(x.dtype) is not None
    )


@cache
def _functions(dtype: torch.dtype) -> ctypes.CDLL | None:
    real = {torch.float32: "float", torch.float64: "double"}.get(dtype)
    return None if real is None else library(real)


@lru_cache(maxsize=1024)
def _shape(m: int, n: int, c: int, s: int, last: bool, threads: int) -> ctypes.c_void_p:
    pixels = last or s == 1
    return ctypes.pointer(Shape(m, n // m, c, s, pixels, threads))


def _call(name: str, x: Tensor, rows: int, *tensors: Tensor | None) -> None:
    """Call a C function with the addresses of contiguous tensors of x's dtype."""
    n, c = x.shape[:2]
    shape = _shape(rows, n, c, x.numel() // (n * c), is_channels_last(x), torch.get_num_threads())
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    getattr(_functions(x.dtype), name)(shape, x.data_ptr(), *pointers)


def _same(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(x.dtype).contiguous() for t in tensors]


def moments(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance (M, C)."""
    x = dense(x, x)
    mean, var = (x.new_empty(rows, x.shape[1]) for _ in range(2))
    _call("moments", x, rows, mean, var)
    return mean, var


def mean_square(x: Tensor, rows: int) -> Tensor:
    """Compute the mean of the squares (M, C)."""
    x = dense(x, x)
    out = x.new_empty(rows, x.shape[1])
    _call("mean_square", x, rows, out)
    return out


def affine(
    x: Tensor,
    mean: Tensor | None,
    inv: Tensor,
    r: Tensor | None,
    d: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Return weight (r (x - mean) inv + d) + bias."""
    x = dense(x, x)
    y = empty_like(x)
    _call("affine", x, inv.shape[0], *_same(x, mean, inv, r, d, weight, bias), y)
    return y


def backward_sums(
    u: Tensor,
    x: Tensor,
    mean: Tensor | None,
    inv: Tensor,
    r: Tensor | None,
    d: Tensor | None,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return g and psi (M, C) of g' = weight r u, and the gradients (C) of weight and bias."""
    x = dense(x, x)
    g, psi = (x.new_empty(inv.shape) for _ in range(2))
    gweight, gbias = (x.new_empty(x.shape[1]) for _ in range(2))
    given = _same(x, mean, inv, r, d, weight)
    _call("backward_sums", x, inv.shape[0], dense(u, x), *given, g, psi, gweight, gbias)
    return g, psi, gweight, gbias


def combine(
    u: Tensor,
    x: Tensor,
    mean: Tensor | None,
    inv: Tensor,
    r: Tensor | None,
    weight: Tensor | None,
    gbar: Tensor | None,
    psibar: Tensor | None,
) -> Tensor:
    """Return inv (weight r u - gbar - z psibar), z = (x - mean) inv."""
    x = dense(x, x)
    gx = empty_like(x)
    given = _same(x, mean, inv, r, weight, gbar, psibar)
    _call("combine", x, inv.shape[0], dense(u, x), *given, gx)
    return gx


def threshold_sums(x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Sum sign(x - threshold) and |x - threshold| over each group: two tensors (M, C)."""
    x = dense(x, x)
    signs, sizes = (x.new_empty(threshold.shape) for _ in range(2))
    _call("threshold_sums", x, threshold.shape[0], *_same(x, threshold), signs, sizes)
    return signs, sizes

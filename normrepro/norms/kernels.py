"""The arithmetic of `core.py` in C (kernels.c), for float32 and float64 batches on a CPU.

The library is built once, at first use, by the system's C compiler, and kept in the user's cache
folder under a name that holds everything it depends on. It runs on the threads of torch's own
OpenMP runtime, is bound by ctypes and so fits any version of torch. Where there is no compiler, or
the build fails, `usable` says no and `eager` does the work.

Switch off by the environment variable NORMREPRO_KERNELS=0, or by `enable(False)`.
"""

import ctypes
import os
from collections.abc import Iterator
from functools import cache, lru_cache

import torch
from torch import Tensor

from normrepro.norms.building import library
from normrepro.norms.layout import Maybe, dense, empty_like, is_channels_last

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


class Terms(ctypes.Structure):
    """What a layer's arithmetic is made of; null pointers leave terms out."""

    _fields_ = tuple((k, ctypes.c_void_p) for k in ("mean", "inv", "r", "d", "weight", "bias"))


def _call(name: str, x: Tensor, rows: int, *arguments: Maybe | ctypes.Array) -> None:
    """Call a C function with the addresses of contiguous tensors of x's dtype."""
    n, c = x.shape[:2]
    shape = _shape(rows, n, c, x.numel() // (n * c), is_channels_last(x), torch.get_num_threads())
    addresses = [t.data_ptr() if isinstance(t, Tensor) else t for t in arguments]
    getattr(_functions(x.dtype), name)(shape, x.data_ptr(), *addresses)


def _terms(given: list[Maybe]) -> ctypes.Array:
    return ctypes.byref(Terms(*(None if t is None else t.data_ptr() for t in given)))


def _same(x: Tensor, *tensors: Maybe) -> list[Maybe]:
    """Return tensors of x's dtype, contiguous; most are already, and asking is cheaper."""
    return [
        t if t is None or (t.dtype is x.dtype and t.is_contiguous()) else t.to(x.dtype).contiguous()
        for t in tensors
    ]


def _statistics(x: Tensor, rows: int, number: int) -> Iterator[Tensor]:
    return (x.new_empty(rows, x.shape[1]) for _ in range(number))


def moments(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance (M, C)."""
    x = dense(x, x)
    mean, var = _statistics(x, rows, 2)
    _call("moments", x, rows, mean, var)
    return mean, var


def mean_square(x: Tensor, rows: int) -> Tensor:
    """Compute the mean of the squares (M, C)."""
    x = dense(x, x)
    (out,) = _statistics(x, rows, 1)
    _call("mean_square", x, rows, out)
    return out


def affine(
    x: Tensor, mean: Maybe, inv: Tensor, r: Maybe, d: Maybe, weight: Maybe, bias: Maybe
) -> Tensor:
    """Return weight (r (x - mean) inv + d) + bias."""
    x = dense(x, x)
    y, given = empty_like(x), _same(x, mean, inv, r, d, weight, bias)
    _call("affine", x, len(inv), _terms(given), y)
    return y


def normalize(
    x: Tensor, rows: int, eps: float, weight: Maybe, bias: Maybe
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, mean, biased variance and inv = 1/sqrt(var + eps) of the groups' own statistics."""
    x = dense(x, x)
    y, given = empty_like(x), _same(x, None, None, None, None, weight, bias)
    mean, var, inv = _statistics(x, rows, 3)
    number = ctypes.byref(ctypes.c_double(eps))
    _call("normalize", x, rows, _terms(given), number, mean, var, inv, y)
    return y, mean, var, inv


def backward_sums(
    u: Tensor, x: Tensor, mean: Maybe, inv: Tensor, r: Maybe, d: Maybe, weight: Maybe
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return g and psi (M, C) of g' = weight r u, and the gradients (C) of weight and bias."""
    x = dense(x, x)
    u, given = dense(u, x), _same(x, mean, inv, r, d, weight)
    g, psi = _statistics(x, len(inv), 2)
    gweight, gbias = (x.new_empty(x.shape[1]) for _ in range(2))
    _call("backward_sums", x, len(inv), u, _terms(given), g, psi, gweight, gbias)
    return g, psi, gweight, gbias


def combine(
    u: Tensor,
    x: Tensor,
    mean: Maybe,
    inv: Tensor,
    r: Maybe,
    weight: Maybe,
    gbar: Maybe,
    psibar: Maybe,
) -> Tensor:
    """Return inv (weight r u - gbar - z psibar), z = (x - mean) inv."""
    x = dense(x, x)
    gx, u, given = empty_like(x), dense(u, x), _same(x, mean, inv, r, None, weight)
    gbar, psibar = _same(x, gbar, psibar)
    _call("combine", x, len(inv), u, _terms(given), gbar, psibar, gx)
    return gx


def backward(
    u: Tensor,
    x: Tensor,
    mean: Maybe,
    inv: Tensor,
    r: Maybe,
    d: Maybe,
    weight: Maybe,
    a: Maybe,
    b: Maybe,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gx with gbar = a g and psibar = b psi, and the gradients of weight and bias."""
    x = dense(x, x)
    gx, u, given = empty_like(x), dense(u, x), _same(x, mean, inv, r, d, weight)
    a, b = _same(x, a, b)
    gweight, gbias = (x.new_empty(x.shape[1]) for _ in range(2))
    _call("backward", x, len(inv), u, _terms(given), a, b, gx, gweight, gbias)
    return gx, gweight, gbias


def threshold_sums(x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Sum sign(x - threshold) and |x - threshold| over each group: two tensors (M, C)."""
    x = dense(x, x)
    signs, sizes = _statistics(x, len(threshold), 2)
    _call("threshold_sums", x, len(threshold), *_same(x, threshold), signs, sizes)
    return signs, sizes


def centre(weight: Tensor) -> Tensor:
    """Subtract from each filter (out, *) its mean."""
    weight = dense(weight, weight)
    y, out = torch.empty_like(weight), len(weight)
    shape = _shape(out, out, 1, weight.numel() // out, False, torch.get_num_threads())
    _functions(weight.dtype).centre(shape, weight.data_ptr(), y.data_ptr())
    return y

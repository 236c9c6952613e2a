"""The arithmetic that every batch-statistics layer shares.

Axis letters used in the whole package: N images of a batch, C channels, S values per image and
channel (H x W, L, ...), R replicas (devices of the protocol), G groups (normalization batches of a
replica), B images of a group, M = R x G. Groups are consecutive images, so a statistic is a tensor
(M, C).

One autograd function covers the family of claims "backward statistics" (MABN eq. 4, 16, 20; BRN;
CBN):

    z  = (x - mean) inv                      y  = gamma (r z + d) + beta
    g' = gamma r gy                          g  = mean(g'),  psi = mean(g' z)      over a group
    gx = inv (g' - gbar - z psibar)          (gbar, psibar) = rule(g, psi)

BN returns (g, psi) itself, the modified form drops gbar, MABN puts moving averages in their place.

Each sweep over a batch is written twice: in C for CPUs (`kernels`), and in torch's operations
(`eager`).
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normrepro.norms import eager, kernels
from normrepro.norms.eager import reduce as reduce
from normrepro.norms.layout import compute_dtype as compute_dtype
from normrepro.norms.layout import is_channels_last as is_channels_last
from normrepro.norms.layout import restore as restore
from normrepro.norms.layout import split as split
from normrepro.norms.layout import spread as spread

Rule = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]


def own(g: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch's own backward statistics: the rule of BN and BRN."""
    return g, psi


class Weigh(NamedTuple):
    """The rule (a g, b psi); a and b are (M, C), or None for 1. CBN's, and fast as `own` is."""

    a: Tensor | None = None
    b: Tensor | None = None

    def __call__(self, g: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Apply it."""
        return g if self.a is None else self.a * g, psi if self.b is None else self.b * psi


def backend(x: Tensor) -> ModuleType:
    """Return the module whose functions serve a batch: `kernels` or `eager`."""
    return kernels if kernels.usable(x) else eager


def moments(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance of each group of a batch (N, C, *): two tensors (M, C).

    They are as accurate as the dtype allows however large the mean is beside the deviation.
    """
    x = x.detach().to(compute_dtype(x))
    return backend(x).moments(x, rows)


def mean_square(x: Tensor, rows: int) -> Tensor:
    """Compute the mean of the squares of each group, MABN's chi_B^2 (eq. 15): (M, C)."""
    x = x.detach().to(compute_dtype(x))
    return backend(x).mean_square(x, rows)


class Normalize(torch.autograd.Function):
    """The family above; statistics enter as constants, what they do to gx is the rule's."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        inv: Tensor,
        r: Tensor | None,
        d: Tensor | None,
        rule: Rule,
    ) -> Tensor:
        """Normalize x (N, C, *) with mean, inv, r, d (M, C) and weight, bias (C)."""
        ctx.save_for_backward(x, weight, mean, inv, r, d)
        ctx.rule = rule
        v = x.to(inv.dtype)
        return backend(v).affine(v, mean, inv, r, d, weight, bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gy: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the rule to the group's backward statistics."""
        x, weight, mean, inv, r, d = ctx.saved_tensors
        v, u = x.to(inv.dtype), gy.to(inv.dtype)
        use, gx = backend(v), None
        rule = Weigh() if ctx.rule is own else ctx.rule
        if isinstance(rule, Weigh) and ctx.needs_input_grad[0]:
            gx, gweight, gbias = use.backward(u, v, mean, inv, r, d, weight, *rule)
        else:
            g, psi, gweight, gbias = use.backward_sums(u, v, mean, inv, r, d, weight)
            gbar, psibar = rule(g, psi)
            if ctx.needs_input_grad[0]:
                gx = use.combine(u, v, mean, inv, r, weight, gbar, psibar)
        gx = None if gx is None else gx.to(x.dtype)
        gw = gweight.to(weight.dtype) if ctx.needs_input_grad[1] else None
        gb = gbias.to(weight.dtype) if ctx.needs_input_grad[2] else None
        return gx, gw, gb, None, None, None, None, None


class NormalizeOwn(torch.autograd.Function):
    """The family with each group's own mean and inv = 1/sqrt(var + eps), and the rule `own`: BN."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        rows: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y (N, C, *), and mean and biased variance (M, C), without gradient."""
        v = x.to(compute_dtype(x))
        y, mean, var, inv = backend(v).normalize(v, rows, eps, weight, bias)
        ctx.save_for_backward(x, weight, mean, inv, None, None)
        ctx.rule = own
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return y.to(x.dtype), mean, var

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gy: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        """Apply the family's backward."""
        if gy is None:
            return (None,) * 5
        return *Normalize.backward(ctx, gy)[:3], None, None


class Centre(torch.autograd.Function):
    """W - mean(W) over each filter (out, *), MABN eq. 18: a projection, so its own derivative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor) -> Tensor:
        """Centre the filters."""
        return backend(weight).centre(weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        """Centre their gradient."""
        return Centre.apply(gradient)

"""Batch renormalization (Ioffe 2017), the baseline BRN of MABN, CBN and EvalNorm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normrepro.norms import core
from normrepro.norms.arguments import number
from normrepro.norms.base import Normalizer, Stats, across_calls, move
from normrepro.norms.batch import group_moments

LIMITS = ("constant", "ioffe", "fractions")


class BatchRenorm(Normalizer):
    """Batch renormalization over groups of images (MABN eq. 14).

    Training, per group and channel, with mu and sigma the running state before this step:
        sigma_B = sqrt(var_B + eps)
        r = clip(sigma_B / sigma, 1/r_max, r_max);  d = clip((mu_B - mu) / sigma, -d_max, d_max)
        y = gamma ((x - mu_B) / sigma_B r + d) + beta;  no gradient through r and d.
    State: running_mean and running_std (`ema="std"`, Ioffe's form, initially 1) or running_var
    (`ema="var"`), moved once per step towards the mean over the groups; num_batches_tracked counts
    steps. Evaluation: gamma (x - mu) / sigma + beta, where sigma is running_std, or
    sqrt(running_var + eps).

    Args:
        channels: C.
        group: Images per set of statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the variance, inside the root.
        affine: Learn gamma and beta.
        momentum: Weight of the new value (Ioffe 0.01; MABN's experiments 0.1).
        r_max: Final limit of r.
        d_max: Final limit of d.
        limits: "constant"; or "ioffe": r_max = 1 and d_max = 0 for `starts[0]` steps, then linear,
            r reaching its limit at step `starts[1]` and d at `starts[2]`; or "fractions": the same,
            with `starts` as fractions of `run_length`.
        starts: The three points (start, r, d) of the schedule; None takes Ioffe's 5000, 40000,
            25000 steps.
        ema: "std" or "var" (the biased variance).

    Raises:
        ValueError: Unknown `limits` or `ema`, r_max < 1, d_max < 0, or "fractions" without a run
            length in training.
    """

    run_length: int | None = None  # optimizer steps of the whole run; the trainer sets it

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float = 0.1,
        r_max: float = 3.0,
        d_max: float = 5.0,
        limits: str = "constant",
        starts: tuple[float, float, float] | None = None,
        ema: str = "std",
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        number(0, 1, momentum=momentum)
        number(1, r_max=r_max)
        number(0, d_max=d_max)
        if limits not in LIMITS or ema not in ("std", "var"):
            raise ValueError(f"{limits=} must be one of {', '.join(LIMITS)}, {ema=} std or var")
        if limits == "fractions" and starts is None:
            raise ValueError(
                "limits='fractions' needs starts=(start, r, d) as fractions of the run"
            )
        if starts is not None and (not isinstance(starts, Sequence) or len(starts) != 3):
            raise ValueError(f"{starts=} must be three numbers: start, and the ends of r and d")
        for value in starts or ():
            number(0, starts=value)
        self.momentum, self.r_max, self.d_max, self.limits, self.ema = (
            momentum,
            r_max,
            d_max,
            limits,
            ema,
        )
        self.starts = tuple(starts or (5000, 40000, 25000))
        self.add_state("running_mean", torch.zeros(channels))
        self.add_state(f"running_{ema}", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def current_limits(self) -> tuple[Tensor | float, Tensor | float]:
        """Return (r_max, d_max) for the step under way; t counts the steps before it."""
        if self.limits == "constant":
            return self.r_max, self.d_max
        start, r_end, d_end = self.starts
        if self.limits == "fractions":
            if self.run_length is None:
                raise ValueError(
                    "limits='fractions' needs the run's length: set layer.run_length to its steps"
                )
            start, r_end, d_end = (s * self.run_length for s in self.starts)
        t = self.num_batches_tracked.double() - start
        r = 1 + (self.r_max - 1) * (t / max(r_end - start, 1)).clamp(0, 1)
        return r, self.d_max * (t / max(d_end - start, 1)).clamp(0, 1)

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by each group's statistics, corrected towards the running ones in limits."""
        mean, var = group_moments(x, rows)
        sigma = (var + self.eps).sqrt()
        with torch.no_grad():
            r, d = (
                v.view(rows, -1)
                for v in self._correction(self.per_replica(mean), self.per_replica(sigma))
            )
        self.observe(
            x,
            {
                "mean": self.per_replica(mean).mean(1),
                self.ema: self.per_replica(sigma if self.ema == "std" else var).mean(1),
            },
        )
        return core.Normalize.apply(x, self.weight, self.bias, mean, 1 / sigma, r, d, core.own)

    def _correction(self, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and d (R, G, C)."""
        mu, moving = (
            self.state("running_mean").unsqueeze(1),
            self._sigma(self.state(f"running_{self.ema}")).unsqueeze(1),
        )
        r_max, d_max = self.current_limits()
        r = torch.clamp(sigma / moving, *_bounds(1 / r_max, r_max, sigma))
        return r, torch.clamp((mean - mu) / moving, *_bounds(-d_max, d_max, sigma))

    def _sigma(self, state: Tensor) -> Tensor:
        return state if self.ema == "std" else (state + self.eps).sqrt()

    def advance(self, seen: list[Stats]) -> None:
        """Move the running statistics once."""
        self.num_batches_tracked += 1
        for name in ("mean", self.ema):
            move(self.state(f"running_{name}"), across_calls(seen, name), self.momentum)

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over mean and variance, or its root."""
        self.running_mean.copy_(mean)
        self.state(f"running_{self.ema}").copy_(
            (var + self.eps).sqrt() if self.ema == "std" else var
        )
        return True

    def inference_stats(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and 1/sigma."""
        return self.eval_buffer("running_mean"), 1 / self._sigma(
            self.eval_buffer(f"running_{self.ema}")
        )


def _bounds(low: Tensor | float, high: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Give both bounds of a clamp as tensors: a scheduled limit needs no host synchronization."""
    return tuple(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (low, high))

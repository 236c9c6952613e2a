"""EvalNorm (Singh & Shrivastava 2019): evaluation that knows the image was part of its batch."""

import torch
import torch.distributed as dist
from torch import Tensor

from normrepro.norms.arguments import number
from normrepro.norms.auxiliary import auxiliary_gradients, corrected
from normrepro.norms.base import Normalizer, Stats, across_calls
from normrepro.norms.batch import BatchNorm, bessel_factor

RULES = {
    "ema": lambda b: 0.0,
    "1/B": lambda b: 1 / b,
    "1/B^2": lambda b: 1 / b**2,
    "1/B^3": lambda b: 1 / b**3,
    "1/sqrt(B)": lambda b: b**-0.5,
}


class EvalNorm(BatchNorm):
    """Batch normalization in training; at evaluation, statistics corrected by the image's own.

    Training: `BatchNorm`, bit for bit. Evaluation, per image i and channel (EvalNorm eq. 5, 6):
        mu^  = alpha mu_i + (1 - alpha) mu_E
        var^ = beta var_i + (1 - beta) var_E + beta (1 - beta) (mu_i - mu_E)^2
        y = weight (x - mu^) / sqrt(var^ + eps) + bias;  E: the running statistics.
    (alpha, beta) = (0, 0) is BatchNorm's evaluation, (1, 1) instance norm. No image sees another.
    The layer is not affine at inference, so it cannot be folded.

    Estimation, `method="online"` (eq. 7-9): after a step moved the running statistics, one step of
    plain SGD by alpha and beta on L = mean |(x - mu_B) / sigma_B - (x - mu^) / sigma^| over a
    device's images of that step; gradients averaged over devices, the result clipped to [0, 1].
    Parameters, gradients and optimizer never see it. "fixed" leaves alpha and beta as given and
    costs nothing in training; `fit_evalnorm` estimates them offline. Of all this the paper gives
    the loss only, and no code was released: rate, mean, clipping and initial values are ours.

    State: BatchNorm's (whose state_dict loads too), and the scalars alpha and beta of all devices.

    Args:
        channels: C.
        group: Images per set of statistics (B); None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the variances.
        affine: Learn weight and bias.
        momentum: Weight of the new value in the running statistics.
        method: "online" or "fixed".
        alpha: Initial value, or a rule of `RULES`: "ema" (0), "1/B", "1/B^2", ...
        beta: Likewise.
        lr: Step length of alpha and beta.
        unbiased: Average the unbiased variance, as torch does; with the biased one, alpha = beta =
            1/B gives the exact conditional moments (eq. 3, 4).
        keep_inputs: Keep a step's inputs to its end, when the running statistics are known. False
            spares the memory and takes the loss in the forward pass, by the running statistics that
            a step with the calls so far would end with: the same with one call per step.

    Raises:
        ValueError: Unknown method or rule, or alpha, beta outside [0, 1].
    """

    linear = False
    rule: str | None = None  # evaluate by a rule of RULES instead of alpha and beta
    fitting = False  # estimate alpha and beta whatever the method; keep the running statistics

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float | None = 0.1,
        method: str = "online",
        alpha: float | str = "1/B^2",
        beta: float | str = "1/B^2",
        lr: float = 0.1,
        unbiased: bool = True,
        keep_inputs: bool = True,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine, momentum)
        for value in (alpha, beta):
            if not isinstance(value, str):
                number(0, 1, **{"alpha or beta": value})
            elif value not in RULES:
                raise ValueError(f"alpha, beta = {value!r} must be in [0, 1] or one of {[*RULES]}")
        if method not in ("online", "fixed"):
            raise ValueError(f"method={method!r} must be 'online' or 'fixed'")
        number(0, lr=lr)
        self.method, self.lr, self.unbiased, self.keep_inputs = method, lr, unbiased, keep_inputs
        self.given = {"alpha": alpha, "beta": beta}
        self.batch = group  # B, from the first training batch where no group is given
        for name, value in self.given.items():  # in float64, so that layer.double() is exact
            self.register_buffer(name, torch.tensor(self._initial(value), dtype=torch.float64))

    # -- training ----------------------------------------------------------------------------------

    def rows(self, x: Tensor) -> int:
        """Return M; a group is never larger than a device's share."""
        return Normalizer.rows(self, x)

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by each group's own statistics."""
        if self.batch is None:
            self._learn_batch(x.shape[0] // rows)
        return super().normalize(x, rows)

    def observe(self, x: Tensor, stats: Stats) -> None:
        """Note a forward's statistics, and its input or the loss's gradients by alpha and beta."""
        if self._recomputing():
            return
        if not self.unbiased:
            stats = stats | {"var": stats["var"] / bessel_factor(x, self.rows(x))}
        if self.estimating and self.keep_inputs and not self.fitting:
            stats = stats | {"x": x.detach()}
        elif self.estimating:
            seen = [stats for _, stats in self._seen]
            ends = (self._moved(name, [*seen, stats]) for name in ("mean", "var"))
            stats = stats | {"gradients": self._gradients(x.detach(), *ends)}
        super().observe(x, stats)

    @property
    def estimating(self) -> bool:
        """Whether alpha and beta move with the steps."""
        return self.fitting or self.method == "online"

    @torch.no_grad()
    def commit(self) -> None:
        """Move the running statistics, then alpha and beta; every device takes part in the mean."""
        seen = self._seen
        super().commit()
        if not self.estimating or not (seen or _several_processes()):
            return
        total = self.alpha.new_zeros(3)  # gradients by alpha and beta over devices, and how many
        if seen:
            ends = self.state("running_mean"), self.state("running_var")
            parts = [
                self._gradients(s["x"], *ends) if "x" in s else s["gradients"] for _, s in seen
            ]
            values = sum(torch.Size(shape).numel() for shape, _ in seen) / self.replicas
            total[:2], total[2] = sum(parts) / values, self.replicas
        if _several_processes():
            dist.all_reduce(total)
        for i, value in enumerate((self.alpha, self.beta)):
            value.sub_(self.lr * total[i] / total[2].clamp(min=1)).clamp_(0, 1)

    def advance(self, seen: list[Stats]) -> None:
        """Move the running statistics once, unless a trained model is being fitted."""
        if not self.fitting:
            super().advance(seen)

    def _moved(self, name: str, seen: list[Stats]) -> Tensor:
        """Return what a running statistic (R, C) is after a step with these calls."""
        state = self.state(f"running_{name}")
        if self.fitting:
            return state
        count = self.num_batches_tracked.double() + 1
        factor = 1 / count if self.momentum is None else self.momentum
        return state + factor * (across_calls(seen, name) - state)

    @torch.no_grad()
    def _gradients(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        group = self.group or len(x) // self.replicas
        return auxiliary_gradients(x, group, mean, var, self.alpha, self.beta, self.eps)

    # -- evaluation --------------------------------------------------------------------------------

    def infer(self, x: Tensor) -> Tensor:
        """Normalize each image by running statistics corrected by its own."""
        if self.rule == "ema" or x.numel() == 0:
            return super().infer(x)
        mean, var = self.eval_buffer("running_mean"), self.eval_buffer("running_var")
        a, b = self.coefficients()
        return corrected(x, mean, var, a, b, self.eps, self.weight, self.bias)

    def coefficients(self) -> tuple[Tensor | float, Tensor | float]:
        """Return the alpha and beta of evaluation; a rule needs B, given or seen in training."""
        if self.rule is None:
            return self.alpha, self.beta
        if self.batch is None:
            raise ValueError(f"rule={self.rule!r} needs the normalization batch: set group=")
        return (RULES[self.rule](self.batch),) * 2

    # -- state -------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Set alpha and beta to their initial values."""
        for name, value in self.given.items():
            getattr(self, name).fill_(self._initial(value))

    def _initial(self, value: float | str) -> float:
        if not isinstance(value, str):
            return float(value)
        return RULES[value](self.batch) if self.batch else 0.0

    def _learn_batch(self, images: int) -> None:
        """Take B from the first training batch; a layer without a past starts by it."""
        self.batch = images
        anew = (self.num_batches_tracked == 0) | self.fitting
        for name, value in self.given.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.where(anew, self._initial(value), buffer))

    def _load_from_state_dict(self, state_dict: Stats, prefix: str, *args: object) -> None:
        """Take a BatchNorm's state too: alpha and beta stay as they are."""
        own = {prefix + name: getattr(self, name) for name in ("alpha", "beta")}
        super()._load_from_state_dict({**own, **state_dict}, prefix, *args)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

"""Cross-iteration batch normalization (CBN, CVPR 2021), as in the paper and as released."""

import torch
from torch import Tensor

from normrepro.norms import core
from normrepro.norms.base import Stats, across_calls
from normrepro.norms.batch import bessel_factor, group_moments
from normrepro.norms.cbn_past import Compensated
from normrepro.norms.cbn_window import burn_in_steps, check_options, join, usual_length


class CBN(Compensated):
    """Cross-iteration batch normalization over groups of images.

    Training, per channel. mu_s, v_s, nu_s = v_s + mu_s^2 are mean, biased variance and mean square
    of the last k groups s of a replica, the group at hand being the last. Those of earlier steps
    are moved to the present weights of the convolution before the layer, x = conv(.; w) + b, which
    `attach(conv)` makes known, dw and db being their change since:
        order 1 (eqs. 7, 8): mu_s += <dmu_s/dw, dw> + db,  nu_s += <dnu_s/dw, dw> + 2 mu_s db
        order 2: mean and variance of the group's inputs under the present weights (exact)
        order 0 (naive CBN): nothing is moved; needs no convolution
        mubar = mean mu_s,  sigma^2 = mean max(nu_s, mu_s^2) - mubar^2          (eqs. 9 to 11)
        xhat = (x - mubar) / sqrt(sigma^2 + eps),  y = gamma xhat + beta        (eq. 12)
        gx = (g - mean(g) / k - xhat mean(g xhat) / k) / sqrt(sigma^2 + eps),   g = gamma gy
    No gradient goes through earlier groups or their compensation.

    Until the burn-in is over k = 1 (batch norm) and nothing is recorded; then the window grows by
    the groups it meets. With several groups per replica it counts groups: earlier ones of the same
    step enter as they are, and the last k - 1 are recorded. k = 1 also for layers and channels
    without a convolution, and for a call whose input is not the convolution's output as it came.
    Every training forward counts, whether gradients are wanted or not.

    variant="official" is the released layer: entries with nu < mu^2 are left out, per channel; the
    divisor is sqrt(sigma^2) + eps; in burn-in and for k = 1 sigma^2 is the unbiased variance; db is
    ignored. Differences to it: state advances once per step and is in the state_dict (there, it is
    lost on saving), half-precision inputs have float32 statistics, and a dead channel (sigma = 0)
    passes no gradient through sigma instead of NaN. Compensation over two layers (paper: 70.1 %
    beside 70.0 % with one) is not offered: derivatives of statistics with respect to the weights of
    earlier layers have no such short form, as the paper says too.

    State: running_mean, running_var (C) or (R, C): the batch at hand, averaged over its groups, the
    variance unbiased, moved once per step; num_batches_tracked counts steps; rings (see `Ringed`):
    window_mean, window_base, for order 1 also window_linear and, for each convolution i,
    window_patch{i} = dmu/dw and window_slope{i} = dv/dw; for order 2 window_input{i} alone.
    Evaluation: as batch norm, gamma (x - running_mean) / sqrt(running_var + eps) + beta, with eps
    where it is in training.

    Args:
        channels: C.
        group: Images per set of statistics (B); None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the variance, or to its root.
        affine: Learn gamma and beta.
        variant: "paper" or "official".
        window: k; None takes min(ceil(16 / B), 8).
        order: 0, 1 or 2.
        burn_in: Steps; or, below 1, a fraction of `run_length`.
        momentum: Weight of the new value in running statistics; None averages all steps equally.
        eps_outside: Divide by sqrt(var) + eps, not sqrt(var + eps); None takes the variant's.

    Raises:
        ValueError: An unknown variant or order, order 2 in the official variant, a window below 1;
            in training, a burn-in as a fraction of a run of unknown length.
    """

    run_length: int | None = None  # optimizer steps of the whole run; the trainer sets it

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        variant: str = "paper",
        window: int | None = None,
        order: int = 1,
        burn_in: float = 0,
        momentum: float | None = 0.1,
        eps_outside: bool | None = None,
    ) -> None:
        check_options(variant, window, order, burn_in)
        drift = variant == "paper"
        super().__init__(channels, group, replicas, eps, affine, order=order, drift=drift)
        self.variant, self.window, self.burn_in = variant, window, burn_in
        self.momentum = momentum
        self.eps_outside = not drift if eps_outside is None else eps_outside
        self.add_state("running_mean", torch.zeros(channels))
        self.add_state("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    # -- equations ---------------------------------------------------------------------------------

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by the joint statistics of each group and those before it."""
        mean, var = group_moments(x, rows)
        own, bessel = (self.per_replica(mean), self.per_replica(var)), bessel_factor(x, rows)
        official, share = self.variant == "official", None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            stats = {"mean": own[0].mean(1), "var": own[1].mean(1) * bessel}
            call, k = self.call_number(x, stats), self.length(x.shape[0] // rows)
            self._k = k
            entries = None
            if k > 1 and self.opened():
                filters = self.filters(mean.dtype)
                entries = self.entries(x, call, own, min(own[0].shape[1], k - 1), filters)
            if entries is not None:
                past = self.past(call, own, x, filters)
                joint = join(past, own, k, self.covered(), drop=official)
                mean, var, share = (v.reshape(rows, -1) for v in joint)
            inv, rule = self._divide(var, share, bessel if official and share is None else 1.0)
            self.observe(x, stats | (entries or {}))
        return core.Normalize.apply(x, self.weight, self.bias, mean, inv, None, None, rule)

    def length(self, group: int) -> int:
        """Return k for groups of so many images: the argument, or what the rings have, or the rule.

        Raises:
            ValueError: Rings were loaded that have another length than the argument.
        """
        stored = self.ring_length()
        if self.window is None:
            return stored + 1 if stored else usual_length(group)
        if stored not in (None, self.window - 1):
            raise ValueError(
                f"the loaded windows have k={stored + 1}: set norm.layer.window to it, not to "
                f"{self.window}"
            )
        return self.window

    def opened(self) -> bool:
        """Tell whether the burn-in is over, in a layer that has a window at all."""
        if self.window == 1:
            return False
        steps = burn_in_steps(self.burn_in, self.run_length)
        return self.number("num_batches_tracked") >= steps

    def _divide(self, var: Tensor, share: Tensor | None, bessel: float) -> tuple[Tensor, core.Rule]:
        """Return 1/divisor (M, C) and what is to become of the backward statistics.

        The group's own statistics have the weight `share` in the joint ones; Psi comes by the
        derivative of the divisor, which is 1/(2 sqrt(var)) where eps stands outside the root.
        """
        var = var * bessel if bessel != 1 else var
        if self.eps_outside:
            root = var.sqrt()
            inv = 1 / (root + self.eps)
            by_psi = torch.where(root > 0, bessel * (1 + self.eps / root), 0.0)
        else:
            inv = (var + self.eps).rsqrt()
            by_psi = None if bessel == 1 else torch.full_like(var, bessel)
        if share is not None:
            by_psi = share if by_psi is None else share * by_psi
        return inv, core.Weigh(share, by_psi)

    # -- state -------------------------------------------------------------------------------------

    def advance(self, seen: list[Stats]) -> None:
        """Move the running statistics and the counter, and record the groups of each call."""
        steps = self.number("num_batches_tracked") + 1
        self.num_batches_tracked.fill_(steps)
        self._know("num_batches_tracked", steps)
        factor = 1 / steps if self.momentum is None else self.momentum
        for name in ("mean", "var"):
            state = self.state(f"running_{name}")
            state += factor * (across_calls(seen, name) - state)
        for call, stats in enumerate(seen):
            if any(name in stats for name in self.rings):
                self.push(call, stats, self._k - 1)

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over mean and variance."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return True

    def inference_stats(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and 1/divisor of the running variance."""
        inv, _ = self._divide(self.eval_buffer("running_var"), None, 1.0)
        return self.eval_buffer("running_mean"), inv

    @property
    def wants_conv(self) -> bool:
        """Look for the convolutions where there is something to compensate."""
        return self.order > 0 and self.window != 1

    def extra_repr(self) -> str:
        """Show the arguments in `print(model)`."""
        shown = ("variant", "window", "order", "burn_in")
        return ", ".join([super().extra_repr(), *(f"{k}={getattr(self, k)}" for k in shown)])

"""Moving average batch normalization (MABN, ICLR 2020): paper, released codes, ablations."""

from functools import partial

import torch
from torch import Tensor, nn

from normrepro.norms import core
from normrepro.norms.arguments import integer, number
from normrepro.norms.base import Stats, across_calls, move
from normrepro.norms.batch import group_moments
from normrepro.norms.centre import centre
from normrepro.norms.window import Windowed

RENORM_FROM = {"paper": 1, "official": 100, "official_root": 1001}
STATISTICS = ("batch", "sma", "ema")
EFFECTIVE_BATCH = 32  # images a window stands for: 16 groups of 2 (MABN, Table 2)


class MABN(Windowed):
    """Moving average batch normalization over groups of images (MABN eq. 13, 15-20).

    Training, per group and channel, with chi_B^2 = mean(x^2), chi_B = sqrt(chi_B^2 + eps), and
    chi^ likewise from the running average of chi_B^2 before this step:
        Y = x / chi_B;  r = clip(chi_B / chi^, 1/clip, clip), no gradient;  y = gamma r Y + beta
        Psi_B = mean(Y g'), g' = r gamma gy;  Psibar = mean of the last `memory` values of Psi_B
        gx = (g' - Y Psibar) / chi_B
    No mean is subtracted: `attach(conv)` centres the filters of the convolution before (eq. 18).
    Evaluation: gamma x / chi^ + beta, which folds into the convolution.

    Variants (`it` counts steps; the first is 1):
        paper: as above; r acts from the first step; a window that fills averages what is there.
        official: the released ImageNet code. The moving average of x^2 over the last `memory`
            groups replaces chi_B^2 everywhere (at it = 1 the group's own), and its mean over the
            groups moves the running average (at it = 1 sets it). r = 1 while it < 100.
        official_root: the released general layer, for one group per replica. Own statistics while
            it <= memory or it < 100, moving averages afterwards. r = 1 while it <= 1000.

    Switches of Tables 2 and 4:
        structure: "modified" as above; "vanilla" subtracts the mean (eq. 1, 4, 14), with
            d = clip((mu_B - mu^) / sigma^, -clip, clip) beside r, and gbar beside Psibar.
        fp: "ema" as above; "batch": r = 1, d = 0; "sma": the moving average of the forward
            statistics in place of the group's own, r = 1, d = 0.
        bp: "sma" as above; "batch": the group's own; "ema": the running average with this step.

    Differences to the released code: state advances once per step (recomputation and reuse do no
    harm), Psi is kept in units of the unscaled loss and never if it is not finite, statistics are
    at least float32, inputs have any rank.

    State: running_var (C) or (R, C): chi^2, or sigma^2 of the vanilla structure, which has
    running_mean too; iters; windows (see `Windowed`) psi, g, x2, mean, var and averages psi_ema,
    g_ema, as far as the switches use them.

    Args:
        channels: C.
        group: Images per set of statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to chi^2, inside the roots.
        affine: Learn gamma and beta.
        variant: "paper", "official" or "official_root".
        momentum: Weight of the new value in running averages; 0.02 is the paper's alpha = 0.98.
        memory: Window length m; None takes max(1, 32 // group).
        clip: Limit of r (lambda) and of d; 5 in the released code, not in the paper.
        renorm_from: First `it` at which r acts; None takes the variant's.
        centre: Centre the weights of the attached convolution.
        structure: "modified" or "vanilla".
        fp: Statistics in forward propagation.
        bp: Statistics in backward propagation.

    Raises:
        ValueError: An unknown name, memory or clip below 1, "vanilla" in an official variant; in
            training, several groups per replica in "official_root".
    """

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        variant: str = "paper",
        momentum: float = 0.02,
        memory: int | None = None,
        clip: float = 5.0,
        renorm_from: int | None = None,
        centre: bool = True,
        structure: str = "modified",
        fp: str = "ema",
        bp: str = "sma",
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        _check(variant, structure, fp, bp, memory, clip)
        number(0, 1, momentum=momentum)
        number(0, renorm_from=0 if renorm_from is None else renorm_from)
        self.variant, self.structure, self.fp, self.bp = variant, structure, fp, bp
        self.momentum, self.memory, self.clip, self.centre = momentum, memory, clip, centre
        self.renorm_from = RENORM_FROM[variant] if renorm_from is None else renorm_from
        self.averages_forward = variant != "paper" or fp == "sma"
        vanilla = structure == "vanilla"
        self.forward_names = ("mean", "var") if vanilla else ("x2",)
        self.backward_names = ("g", "psi") if vanilla else ("psi",)
        self._centred = False
        if vanilla:
            self.add_state("running_mean", torch.zeros(channels))
        self.add_state("running_var", torch.ones(channels))
        self.register_buffer("iters", torch.tensor(0))
        for name in self.backward_names:
            if bp == "sma":
                self.add_window(name, memory)
            elif bp == "ema":
                self.add_state(f"{name}_ema", torch.zeros(channels))
        for name in self.forward_names if self.averages_forward else ():
            self.add_window(name, memory)

    # -- equations ---------------------------------------------------------------------------------

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by chi_B, or its moving average, and renormalize towards chi^."""
        with torch.no_grad():
            found = group_moments(x, rows) if len(self.forward_names) == 2 else None
            found = found or (core.mean_square(x, rows),)
            own = dict(zip(self.forward_names, map(self.per_replica, found), strict=True))
            call, it = self.call_number(x, own), self.iters + 1
            used = self._forward_statistics(call, it, own, x.shape[0] // rows)
            sigma = (used[self.forward_names[-1]] + self.eps).sqrt()  # (R, G, C)
            r, d = self._renormalization(used, sigma, it)
            means = {f"used_{k}": v.mean(1) for k, v in used.items()}
            self.observe(x, own | means)
        flat = [
            None if v is None else v.reshape(rows, -1) for v in (used.get("mean"), 1 / sigma, r, d)
        ]
        rule = partial(self._backward_statistics, call, it)
        return core.Normalize.apply(x, self.weight, self.bias, *flat, rule)

    def _forward_statistics(self, call: int, it: Tensor, own: Stats, group: int) -> Stats:
        if self.variant == "official_root" and next(iter(own.values())).shape[1] > 1:
            raise ValueError(
                "variant='official_root' takes one group per replica: set group (batch.norm) to "
                "the replica's share"
            )
        if self.windows:
            self.make_windows(call + 1, max(1, EFFECTIVE_BATCH // group))
        if not self.averages_forward:
            return own
        return {k: self._moving(k, call, it, v) for k, v in own.items()}

    def _moving(self, name: str, call: int, it: Tensor, new: Tensor) -> Tensor:
        """Return the moving averages (R, G, C), or the values themselves before `it` is due."""
        average = self.window_average(name, call, new)
        if self.variant == "paper":
            return average
        memory = getattr(self, f"{name}_window").shape[-2]
        due = 2 if self.variant == "official" else max(memory + 1, 100)
        return torch.where(it >= due, average, new)

    def _renormalization(
        self, used: Stats, sigma: Tensor, it: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return r and d (R, G, C) of eq. 14 and 19, None where they are 1 and 0."""
        if self.fp != "ema":
            return None, None
        moving = (self.state("running_var").unsqueeze(1) + self.eps).sqrt()
        r = (sigma / moving).clamp(1 / self.clip, self.clip)
        active = it >= self.renorm_from
        if "mean" not in used:
            return torch.where(active, r, 1.0), None
        d = (used["mean"] - self.state("running_mean").unsqueeze(1)) / moving
        return torch.where(active, r, 1.0), torch.where(active, d.clamp(-self.clip, self.clip), 0.0)

    def _backward_statistics(
        self, call: int, it: Tensor, g: Tensor, psi: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Replace g and Psi as `bp` says; g has no part in the modified form (eq. 16)."""
        scale = self.loss_scale
        found = {"g": g, "psi": psi}
        own = {k: self.per_replica(found[k]) / scale for k in self.backward_names}
        used = {k: self._backward_average(k, call, it, v) for k, v in own.items()}
        self.feel(call, own)
        flat = {k: (v * scale).reshape(g.shape) for k, v in used.items()}
        return flat.get("g"), flat["psi"]

    def _backward_average(self, name: str, call: int, it: Tensor, new: Tensor) -> Tensor:
        if self.bp == "batch":
            return new
        if self.bp == "sma":
            return self._moving(name, call, it, new)
        old = self.state(f"{name}_ema")
        return (old + self.momentum * (new.mean(1) - old)).unsqueeze(1).expand_as(new)

    # -- state -------------------------------------------------------------------------------------

    def advance(self, seen: list[Stats]) -> None:
        """Move the running averages, the counter and the forward windows."""
        for name in self.forward_names:
            state = self.state("running_mean" if name == "mean" else "running_var")
            new = across_calls(seen, f"used_{name}")
            if self.variant == "official":
                state.copy_(torch.where(self.iters == 0, new, state))
            move(state, new, self.momentum)
            for call, stats in enumerate(seen if self.averages_forward else ()):
                self.push_window(name, call, stats[name])
        self.iters += 1

    def advance_backward(self, felt: dict[int, Stats]) -> None:
        """Move the backward windows or averages of the calls that had a backward."""
        for name in self.backward_names:
            if self.bp == "sma":
                for call, stats in felt.items():
                    self.push_window(name, call, stats[name])
            elif self.bp == "ema":
                new = across_calls([{name: s[name].mean(1)} for s in felt.values()], name)
                state = self.state(f"{name}_ema")
                step = torch.where(new.isfinite().all(), self.momentum * (new - state), 0.0)
                state += step

    def inference_stats(self) -> tuple[Tensor | None, Tensor]:
        """Return the running mean of the vanilla structure, else None, and 1/chi^."""
        mean = self.eval_buffer("running_mean") if self.structure == "vanilla" else None
        return mean, (self.eval_buffer("running_var") + self.eps).rsqrt()

    # -- conversion --------------------------------------------------------------------------------

    @property
    def wants_conv(self) -> bool:
        """Look for the convolution where its weights are to be centred."""
        return self.centre

    def attach(self, conv: nn.Module, channels: slice | None = None, pooled: bool = False) -> None:
        """Centre the filters of a convolution that feeds this layer (eq. 18)."""
        if self.centre:
            self._centred |= centre(conv)

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over chi^2 = var + mean^2 (eq. 40), unless centring changes the layer's input."""
        if self._centred:
            return False
        vanilla = self.structure == "vanilla"
        if vanilla:
            self.running_mean.copy_(mean)
        self.running_var.copy_(var if vanilla else var + mean.square())
        return True


def _check(variant: str, structure: str, fp: str, bp: str, memory: int | None, clip: float) -> None:
    names = {
        "variant": (variant, tuple(RENORM_FROM)),
        "structure": (structure, ("modified", "vanilla")),
        "fp": (fp, STATISTICS),
        "bp": (bp, STATISTICS),
    }
    for key, (value, allowed) in names.items():
        if value not in allowed:
            raise ValueError(f"{key}={value!r} must be one of {', '.join(allowed)}")
    if structure == "vanilla" and variant != "paper":
        raise ValueError(f"variant={variant!r} has only the modified structure")
    number(1, clip=clip)
    integer(memory=1 if memory is None else memory)

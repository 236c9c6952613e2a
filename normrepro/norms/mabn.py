"""Moving average batch normalization (MABN, ICLR 2020), as in the paper and as in its two released algorithms."""

from functools import partial

import torch
from torch import Tensor, nn

from normrepro.norms import core
from normrepro.norms.base import Normalizer, Stats, across_calls
from normrepro.norms.centre import centre
from normrepro.norms.window import push_finite, slide

VARIANTS = ("paper", "official", "official_root")
EFFECTIVE_BATCH = 32  # images that the window stands for: memory 16 at normalization batch 2 (MABN, Table 2)


class MABN(Normalizer):
    """Moving average batch normalization over groups of images (MABN eq. 15-20).

    Training, per group and channel, with chi_B^2 = mean(x^2) and chi^2 its running average before this step:
        Y = x / sqrt(chi_B^2 + eps);  r = clip(sqrt(chi_B^2 + eps) / sqrt(chi^2 + eps), 1/clip, clip);  y = gamma r Y + beta
        gx = 1/chi_B (r gamma gy - Y Psibar),  Psibar = mean of the last `memory` values of Psi_B = mean(Y r gamma gy)
    No mean is subtracted: `attach(conv)` centres the filters of the convolution before it (eq. 18).
    Evaluation: gamma x / sqrt(chi^2 + eps) + beta, which folds into the convolution.

    Variants (`it` counts steps, the first is 1):
        paper          as above; r from the first step; Psi over the values that are there while the window fills.
        official       the released ImageNet code: the moving average of x^2 over the last `memory` groups replaces chi_B^2
                       everywhere (the group's own at it = 1), its mean over the groups moves chi^2 (set at it = 1); r = 1
                       while it < 100.
        official_root  the released general layer: one group per replica; own statistics while it <= memory or it < 100,
                       moving averages afterwards; r = 1 while it <= 1000.
    Differences to the released code: state advances once per step (recomputation and reuse are safe), Psi is stored in
    units of the unscaled loss and never if it is not finite, statistics are float32 at least, any input rank.

    State: running_var = chi^2 (C) or (R, C); iters; psi_window (K, m, C) or (R, K, m, C), newest last, for K calls of the
    layer within a step, with psi_count (K); for the official variants x2_window and x2_count likewise.

    Args:
        channels: C.
        group: Images per set of statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to chi^2, inside the roots.
        affine: Learn gamma and beta.
        variant: "paper", "official" or "official_root".
        momentum: Weight of the new value in chi^2; 0.02 is the paper's alpha = 0.98.
        memory: Window length m; None takes max(1, 32 // group).
        clip: Limit of r (lambda; 5 in the released code, not in the paper).
        renorm_from: First `it` at which r acts; None takes the variant's.
        centre: Centre the weights of the attached convolution.

    Raises:
        ValueError: Unknown variant, memory < 1 or clip < 1; more than one group per replica with "official_root".
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
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        if variant not in VARIANTS or clip < 1 or (memory is not None and memory < 1):
            raise ValueError(f"variant={variant!r} must be one of {VARIANTS}, clip={clip} and memory={memory} >= 1")
        self.variant, self.momentum, self.memory, self.clip, self.centre = variant, momentum, memory, clip, centre
        self._centred = False
        starts = {"paper": 1, "official": 100, "official_root": 1001}
        self.renorm_from = starts[variant] if renorm_from is None else renorm_from
        self.add_state("running_var", torch.ones(channels))
        self.register_buffer("iters", torch.tensor(0))
        for name in ("psi",) if variant == "paper" else ("psi", "x2"):
            self.add_state(f"{name}_window", torch.zeros(0, memory or 0, channels))
            self.register_buffer(f"{name}_count", torch.zeros(0, dtype=torch.long))

    def attach(self, conv: nn.Module) -> None:
        """Centre the filters of the convolution that feeds this layer."""
        if self.centre:
            self._centred = centre(conv)

    @property
    def wants_conv(self) -> bool:
        """Look for the convolution where its weights are to be centred."""
        return self.centre

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over chi^2 = var + mean^2 (eq. 40), unless centring changes what the convolution puts out."""
        if not self._centred:
            self.running_var.copy_(var + mean.square())
        return not self._centred

    # -- equations ----------------------------------------------------------------------------------------------------

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by chi_B, or its moving average, and renormalize towards the running chi."""
        with torch.no_grad():
            chi2 = self.per_replica(core.mean_square(x, rows))  # (R, G, C)
            if self.variant == "official_root" and chi2.shape[1] > 1:
                raise ValueError("variant='official_root' has one group per replica: set group=None or group=the share")
            call, it = self.call_number(x, {"chi2": chi2}), self.iters + 1
            self._make_windows(call + 1, x.shape[0] // rows)
            used = chi2 if self.variant == "paper" else self._average("x2", call, it, chi2)
            chi = (used + self.eps).sqrt()
            r = chi / (self.state("running_var").unsqueeze(1) + self.eps).sqrt()
            r = torch.where(it >= self.renorm_from, r.clamp(1 / self.clip, self.clip), 1.0)
            self.observe(x, {"chi2": chi2, "used": used.mean(1)})
        inv, r = (1 / chi).view(rows, -1), r.view(rows, -1)
        rule = partial(self._rule, call, it)
        return core.Normalize.apply(x, self.weight, self.bias, None, inv, r, None, rule)

    def _rule(self, call: int, it: Tensor, g: Tensor, psi: Tensor) -> tuple[None, Tensor]:
        """Replace Psi by its moving average; g has no part in the modified form (eq. 16)."""
        scale = self.loss_scale
        psi = self.per_replica(psi) / scale
        average = self._average("psi", call, it, psi)
        self.feel(call, psi)
        return None, (average * scale).view(g.shape)

    def _average(self, name: str, call: int, it: Tensor, new: Tensor) -> Tensor:
        """Return the moving averages that end with each new value (R, G, C), or the values before the averages start."""
        count = getattr(self, f"{name}_count")[call]
        average = slide(self.state(f"{name}_window")[:, call], count, new)
        if self.variant == "paper":
            return average
        start = 2 if self.variant == "official" else max(self._memory + 1, 100)
        return torch.where(it >= start, average, new)

    # -- state --------------------------------------------------------------------------------------------------------

    def advance(self, seen: list[Stats]) -> None:
        """Move chi^2, the counter and the windows of x^2."""
        moving, new = self.state("running_var"), across_calls(seen, "used")
        if self.variant == "official":
            moving.copy_(torch.where(self.iters == 0, new, moving))
        moving += self.momentum * (new - moving)
        self.iters += 1
        if self.variant != "paper":
            for call, stats in enumerate(seen):
                push_finite(self.state("x2_window")[:, call], self.x2_count[call], stats["chi2"])

    def advance_backward(self, felt: dict[int, Tensor]) -> None:
        """Append Psi to the window of each call that had a backward."""
        for call, psi in felt.items():
            push_finite(self.state("psi_window")[:, call], self.psi_count[call], psi)

    @property
    def _memory(self) -> int:
        return self.psi_window.shape[-2]

    def _make_windows(self, calls: int, group: int) -> None:
        """Make room for the calls of a step; the first forward settles the window's length."""
        for name in ("psi",) if self.variant == "paper" else ("psi", "x2"):
            old = self.state(f"{name}_window")
            if old.shape[1] >= calls:
                continue
            memory = old.shape[2] or max(1, EFFECTIVE_BATCH // group)
            new = old.new_zeros(self.replicas, calls, memory, self.channels)
            if old.shape[1]:
                new[:, : old.shape[1]] = old
            count = getattr(self, f"{name}_count")
            setattr(self, f"{name}_window", new if self.replicas > 1 else new[0])
            setattr(self, f"{name}_count", torch.cat([count, count.new_zeros(calls - len(count))]))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        """Take windows of any number of calls and any length."""
        for name, buffer in list(self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if name.endswith(("_window", "_count")) and saved is not None:
                self._buffers[name] = buffer.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def inference_stats(self) -> tuple[None, Tensor]:
        """Return no mean and 1/sqrt(chi^2 + eps)."""
        return None, (self.eval_buffer("running_var") + self.eps).rsqrt()

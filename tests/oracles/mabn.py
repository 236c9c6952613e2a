"""References for MABN: the paper's layer, the two released ones, and weight centring (eq. 18)."""

from typing import Any

import torch
from torch import Tensor

from .base import Oracle
from .layout import average, mean


def centred(weight: Tensor) -> Tensor:
    """W - Wbar per output filter (eq. 18); filters of one weight are left alone."""
    out = weight.clone()
    for o in range(weight.shape[0]):
        if weight[o].numel() > 1:
            out[o] = weight[o] - weight[o].sum() / weight[o].numel()
    return out


class MABN(Oracle):
    """The paper's MABN (eqs. 13, 19, 20) with chi^2 = mean x^2; the variants change its switches.

    Y = X/chi, Yhat = r Y, r = clip(chi/chi^, 1/clip, clip); dL/dY = r dL/dYhat;
    dL/dX = (dL/dY - Y Psibar)/chi with Psi = mean(Y dL/dY), averaged over the last m groups, this
    one included.
    """

    def __init__(
        self,
        *args: Any,
        memory: int,
        momentum: float = 0.02,
        clip: float = 5.0,
        renorm_from: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.memory, self.momentum, self.clip, self.renorm_from = (
            memory,
            momentum,
            clip,
            renorm_from,
        )
        self.iters = 0
        self.running_var = self.per_replica(1.0)  # EMA of chi^2, named as in the released code
        # Window entries, oldest first, one list per replica: committed, and of the step under way.
        self.old_psi: list[list[Tensor]] = [[] for _ in range(self.replicas)]
        self.old_x2: list[list[Tensor]] = [[] for _ in range(self.replicas)]
        self.new_psi: list[list[Tensor]] = [[] for _ in range(self.replicas)]
        self.new_x2: list[list[Tensor]] = [[] for _ in range(self.replicas)]

    @property
    def now(self) -> int:
        """Number of the step under way; the first is 1."""
        return self.iters + 1

    def psi_is_moving(self) -> bool:
        """Whether backward uses the window's mean rather than the group's own Psi."""
        return True

    def x2_is_moving(self) -> bool:
        """Whether forward uses the window's mean of x^2 rather than the group's own."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        self.new_x2 = [[] for _ in range(self.replicas)]
        return super().forward(x)

    def normalize(self, x: Tensor, device: int) -> dict[str, Any]:
        self.new_x2[device].append(mean(x**2).reshape(-1))
        seen = self.old_x2[device] + self.new_x2[device]
        x2 = average(seen[-self.memory :]) if self.x2_is_moving() else seen[-1]
        chi = (x2[:, None] + self.eps).sqrt()
        chi_ema = (self.running_var[device][:, None] + self.eps).sqrt()
        r = torch.ones_like(chi)
        if self.now >= self.renorm_from:
            r = (chi / chi_ema).clamp(1 / self.clip, self.clip)
        return {"xhat": r * x / chi, "y": x / chi, "r": r, "chi": chi, "x2": x2}

    def backward(self, gz: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        self.new_psi = [[] for _ in range(self.replicas)]
        return super().backward(gz, scale)

    def input_gradient(self, g: Tensor, kept: dict[str, Any]) -> Tensor:
        device = kept["devices"][0]
        gy, y = kept["r"] * g, kept["y"]
        # Windows hold Psi of the objective itself, whatever its scale in this step.
        self.new_psi[device].append(mean(y * gy).reshape(-1) / self.scale)
        seen = self.old_psi[device] + self.new_psi[device]
        psi = average(seen[-self.memory :]) if self.psi_is_moving() else seen[-1]
        return (gy - y * self.scale * psi[:, None]) / kept["chi"]

    def commit(self) -> None:
        for r in range(self.replicas):
            new = average(self.of_device("x2", r))
            self.running_var[r] = self.updated(self.running_var[r], new)
            self.old_x2[r] = (self.old_x2[r] + self.new_x2[r])[-self.memory :]
            self.old_psi[r] = (self.old_psi[r] + self.new_psi[r])[-self.memory :]
        self.new_x2 = [[] for _ in range(self.replicas)]
        self.new_psi = [[] for _ in range(self.replicas)]
        self.iters += 1

    def updated(self, ema: Tensor, new: Tensor) -> Tensor:
        """One step of the EMA."""
        return (1 - self.momentum) * ema + self.momentum * new

    def population(self, device: int) -> tuple[Tensor, Tensor]:
        ema = self.running_var[device]
        return torch.zeros_like(ema), (ema + self.eps).sqrt()

    def window(self, entries: list[list[Tensor]]) -> Tensor:
        """Window as the layers hold it: (1, m, C) or (R, 1, m, C), newest last, zeros if empty."""
        out = torch.zeros(self.replicas, 1, self.memory, self.channels, dtype=torch.float64)
        for r, values in enumerate(entries):
            for age, value in enumerate(reversed(values)):
                out[r, 0, self.memory - 1 - age] = value
        return out[0] if self.replicas == 1 else out

    def buffers(self) -> dict[str, Tensor]:
        return {
            "running_var": self.packed(self.running_var),
            "iters": torch.tensor(self.iters),
            "psi_window": self.window(self.old_psi),
            "psi_count": torch.tensor([len(self.old_psi[0])]),
        }


class OfficialMABN(MABN):
    """The released ImageNet code (column cls): the window's mean of x^2 replaces chi_B^2.

    Both windows slide inside the batch and are used from the second step on, r from step 100. The
    first step sets the EMA to the mean over groups, later ones feed it the windows' means.
    """

    def __init__(self, *args: Any, renorm_from: int = 100, **kwargs: Any) -> None:
        super().__init__(*args, renorm_from=renorm_from, **kwargs)

    def psi_is_moving(self) -> bool:
        return self.now >= 2

    def x2_is_moving(self) -> bool:
        return self.now >= 2

    def updated(self, ema: Tensor, new: Tensor) -> Tensor:
        return new if self.now == 1 else super().updated(ema, new)

    def buffers(self) -> dict[str, Tensor]:
        count = torch.tensor([len(self.old_x2[0])])
        return {**super().buffers(), "x2_window": self.window(self.old_x2), "x2_count": count}


class OfficialRootMABN(OfficialMABN):
    """The released general layer (column MABN.py), one group per device.

    The windows are used once it > m and it >= 100, r once it > 1000; the EMA starts at one and
    moves every step.
    """

    def __init__(
        self, *args: Any, renorm_from: int = 1001, warmup: int = 100, **kwargs: Any
    ) -> None:
        super().__init__(*args, renorm_from=renorm_from, **kwargs)
        self.warmup = warmup

    def psi_is_moving(self) -> bool:
        return self.now > self.memory and self.now >= self.warmup

    def x2_is_moving(self) -> bool:
        return self.psi_is_moving()

    def updated(self, ema: Tensor, new: Tensor) -> Tensor:
        return MABN.updated(self, ema, new)

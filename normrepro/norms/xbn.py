"""XBNBlock (Huang et al. 2022): its disturbed batch norm. Its blocks are `rules` in configs/norm.

XBNBlock puts a batch-free norm (GN, IN, GW) in place of one batch norm of each bottleneck (P1, P2
or P3), or of every second, fourth or eighth bottleneck (D2, D4, D8): configs/norm/xbn_*.yaml.
Matches are counted over the whole net from 1, so `every: 2` takes blocks 2, 4, 6, ... as the paper
does. The released models replace the norm of the stem as well, which the paper does not say:
xbn_*_stem.yaml.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normrepro.norms.batch import BatchNorm
from normrepro.norms.conversion import replace

FIRST_NORMS = r"layer\d+\.\d+\.bn1$"  # of the blocks of torchvision's and timm's ResNets


class DisturbedBatchNorm(BatchNorm):
    """Batch normalization with noise on the running statistics at evaluation (XBNBlock eq. 5).

        mu_d = (1 + delta_mu) mu,  var_d = (1 + delta_var) var,  both uniform in (-delta, delta)

    Training, shapes and state are BatchNorm's; the deltas are drawn once, when the layer is made,
    and are no part of its state_dict. Evaluation: gamma (x - mu_d) / sqrt(var_d + eps) + beta,
    which folds. No code was released for it; whether a delta is shared by a layer's channels the
    paper does not say.

    Args:
        channels: C.
        group: Images per set of statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the variance.
        affine: Learn gamma and beta.
        momentum: Weight of the new value in the running statistics.
        delta: Noise magnitude, 0 <= delta < 1, which keeps the variance positive.
        per: "channel" or "layer".
        seed: Of the draw; layers with one seed and one width have the same noise (`disturbed` gives
            each its own). None draws by torch's global state.

    Raises:
        ValueError: delta outside [0, 1), or unknown `per`.
    """

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float | None = 0.1,
        delta: float = 0.1,
        per: str = "channel",
        seed: int | None = None,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine, momentum)
        if delta is None or not 0 <= delta < 1 or per not in ("channel", "layer"):
            raise ValueError(f"{delta=} must be in [0, 1), {per=} 'channel' or 'layer'")
        self.delta, self.per = delta, per
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for name in ("mean", "var"):
            self.register_buffer(f"delta_{name}", torch.zeros(channels), persistent=False)
        self.draw(generator)

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw the noise anew; one state of the generator gives one pattern, scaled by `delta`."""
        for buffer in (self.delta_mean, self.delta_var):
            width = self.channels if self.per == "channel" else 1
            unit = torch.rand(width, generator=generator, dtype=torch.float64, device="cpu")
            buffer.copy_((self.delta * (2 * unit - 1)).expand(self.channels))

    def inference_stats(self) -> tuple[Tensor, Tensor]:
        """Return the disturbed mean and 1/sqrt(disturbed variance + eps)."""
        mean, var = self.eval_buffer("running_mean"), self.eval_buffer("running_var")
        return (1 + self.delta_mean) * mean, ((1 + self.delta_var) * var + self.eps).rsqrt()


@contextmanager
def disturbed(
    model: nn.Module,
    delta: float,
    seed: int = 0,
    per: str = "channel",
    match: str = FIRST_NORMS,
    first: int | None = 6,
) -> Iterator[list[str]]:
    """Disturb batch norms of a trained model for the length of a `with` block (XBNBlock, Figure 8).

    Args:
        model: A model with `BatchNorm` layers; other normalizers are passed over.
        delta: Noise magnitude.
        seed: One draw for all layers, in the model's order; delta only scales it.
        per: "channel" or "layer".
        match: Regular expression on the layers' names.
        first: How many of the matches to disturb; None takes all. The paper: the first BN of the
            first six blocks.

    Yields:
        The names of the disturbed layers.

    Raises:
        ValueError: Nothing matches.
    """
    found = {n: m for n, m in model.named_modules() if type(m) is BatchNorm and re.search(match, n)}
    names = list(found)[:first]
    if not names:
        raise ValueError(f"no BatchNorm of the model has a name that matches {match!r}")
    generator = torch.Generator().manual_seed(seed)
    noisy = {name: _noisy(found[name], delta, per, generator) for name in names}
    for name in names:
        replace(model, found[name], noisy[name])
    try:
        yield names
    finally:
        for name in names:
            replace(model, noisy[name], found[name])


def _noisy(old: BatchNorm, delta: float, per: str, generator: torch.Generator) -> nn.Module:
    """Make a disturbed layer that shares an undisturbed one's parameters and buffers."""
    shape = (old.channels, old.group, old.replicas, old.eps, old.affine, old.momentum)
    new = DisturbedBatchNorm(*shape, delta=delta, per=per)
    new.draw(generator)
    new.to(old.running_mean.device, old.running_mean.dtype).train(old.training)
    new.weight, new.bias, new.eval_state = old.weight, old.bias, old.eval_state
    new._buffers.update(old._buffers)
    return new

"""Switchable normalization (Luo et al. 2019), which XBNBlock's Table 2 compares with."""

import torch
from torch import Tensor, nn

from normrepro.norms import core
from normrepro.norms.arguments import number
from normrepro.norms.base import Normalizer, Stats, across_calls


class SwitchableNorm(Normalizer):
    """Normalization by a learned mixture of instance, layer and batch statistics.

    For image i and channel c, v = softmax(mean_weight), w = softmax(var_weight), k = IN, LN, BN:
        mu = sum v_k mu_k,  var = sum w_k var_k,  y = gamma (x - mu) / sqrt(var + eps) + beta
        mu_IN, var_IN: of the image's channel, the variance unbiased (0 where there is one value)
        mu_LN = mean_c mu_IN,  var_LN = mean_c (var_IN + mu_IN^2) - mu_LN^2
        mu_BN = mean_i mu_IN,  var_BN = mean_i (var_IN + mu_IN^2) - mu_BN^2,  i over a group
    The gradient flows through all three kinds of statistics and both mixtures.
    State: mean_weight, var_weight (3), learned, initially 1; running_mean, running_var (C) or (R,
    C), both initially 0, moved once per step towards the means over the groups;
    num_batches_tracked. Evaluation: (mu_BN, var_BN) are the running ones, the others the image's
    own, so the layer is not affine and does not fold.

    As in the released code, of which this is the moving-average form (its other form collects
    statistics in a pass of their own); differences: one value per channel (1x1 maps, vectors) gives
    no NaN, and the variances are computed about their means.

    Args:
        channels: C.
        group: Images per set of batch statistics; None takes a replica's whole share.
        replicas: Devices of the protocol on this process.
        eps: Added to the mixed variance.
        affine: Learn gamma and beta.
        momentum: Weight of the new value in the running statistics.
    """

    linear = False

    def __init__(
        self,
        channels: int,
        group: int | None = None,
        replicas: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(channels, group, replicas, eps, affine)
        number(0, 1, momentum=momentum)
        self.momentum = momentum
        self.mean_weight, self.var_weight = (nn.Parameter(torch.ones(3)) for _ in range(2))
        self.add_state("running_mean", torch.zeros(channels))
        self.add_state("running_var", torch.zeros(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def normalize(self, x: Tensor, rows: int) -> Tensor:
        """Normalize by each image's and each group's own statistics."""
        v, mu, var = _centred(x)
        mean, spread = _pool(mu.unflatten(0, (rows, -1)), var.unflatten(0, (rows, -1)), 1)
        seen = {"mean": mean, "var": spread}
        self.observe(x, {k: self.per_replica(s.detach()).mean(1) for k, s in seen.items()})
        images = len(x) // rows
        batch = (s.repeat_interleave(images, 0, output_size=len(x)) for s in (mean, spread))
        return self._mix(x, v, mu, var, *batch)

    def infer(self, x: Tensor) -> Tensor:
        """Normalize by each image's own and the running statistics."""
        if x.numel() == 0:
            return x.clone()
        mean, var = self.eval_buffer("running_mean"), self.eval_buffer("running_var")
        return self._mix(x, *_centred(x), mean, var)

    def _mix(
        self, x: Tensor, v: Tensor, mu: Tensor, var: Tensor, mean_b: Tensor, var_b: Tensor
    ) -> Tensor:
        """Normalize v = x - mu_IN by the mixture; statistics (N, C), those of the batch or (C)."""
        mean_l, var_l = _pool(mu, var, 1)
        a, b = (p.to(mu.dtype).softmax(0) for p in (self.mean_weight, self.var_weight))
        mean = a[0] * mu + a[1] * mean_l.unsqueeze(1) + a[2] * mean_b
        scale = (b[0] * var + b[1] * var_l.unsqueeze(1) + b[2] * var_b + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = (mu - mean) * scale
        shift = shift if self.bias is None else shift + self.bias
        return core.restore(torch.addcmul(core.spread(shift, v), v, core.spread(scale, v)), x)

    def advance(self, seen: list[Stats]) -> None:
        """Move the running statistics once."""
        self.num_batches_tracked += 1
        for name in ("mean", "var"):
            state = self.state(f"running_{name}")
            state += self.momentum * (across_calls(seen, name) - state)

    def adopt(self, mean: Tensor, var: Tensor) -> bool:
        """Take over mean and variance."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return True


def _centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x minus each image's channel means, split by images; means and unbiased variances."""
    v = core.split(x, len(x), core.is_channels_last(x)).to(core.compute_dtype(x))
    count = v[0].numel() // v.shape[2]
    mu = core.reduce(v) / count
    v = v - core.spread(mu, v)
    return v, mu, core.reduce(v * v) / max(count - 1, 1)


def _pool(mu: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return mean mu and mean(var + mu^2) - (mean mu)^2 along an axis, without its cancellation."""
    mean = mu.mean(dim, keepdim=True)
    return mean.squeeze(dim), (var + (mu - mean).square()).mean(dim)

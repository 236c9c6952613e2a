"""EvalNorm's equations (3) to (6): exact moments, the ends of the scale, independence of images."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import draw, error


def fixed(value: float, mean: Tensor, var: Tensor, eps: float = 0.0) -> norms.EvalNorm:
    """Make a layer in evaluation mode with alpha = beta = value and these averages."""
    layer = norms.EvalNorm(
        len(mean), method="fixed", alpha=value, beta=value, eps=eps, affine=False
    )
    layer = layer.double().eval()
    layer.adopt(mean, var)
    return layer


def by_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (N, C) of each image."""
    return x.flatten(2).mean(2), x.flatten(2).var(2, correction=0)


@check
def decomposition() -> Mapping[str, float]:
    """Alpha = beta = 1/B with the statistics of the rest of the batch are the batch's."""
    worst = 0.0
    for size in (2, 3, 7):
        x = draw(size, 4, 5)
        rest = by_image(x[1:].transpose(0, 1).reshape(1, 4, -1))
        whole = norms.BatchNorm(4, eps=0, affine=False).double()(x)[:1]
        worst = max(worst, error(fixed(1 / size, *(m[0] for m in rest))(x[:1]), whole))
    return {"output": worst}


def _instance(x: Tensor) -> Tensor:
    return F.instance_norm(x, eps=0)


@check
def ends_of_the_scale() -> Mapping[str, float]:
    """(0, 0) beside evaluation by running averages, (1, 1) beside instance norm."""
    x, mu, var = draw(6, 4, 9), draw(4, seed=1), draw(4, seed=2).square() + 0.5
    ema = (x - mu[:, None]) / var.sqrt()[:, None]
    return {
        "at_0_beside_EMA": error(fixed(0.0, mu, var)(x), ema),
        "at_1_beside_IN": error(fixed(1.0, mu, var)(x), _instance(x)),
    }


@check
def conditional_moments() -> Mapping[str, float]:
    """(5), (6) at 1/B beside the means over all batches of 5 samples that hold an image."""
    worst, jensen = 0.0, 0.0
    population = draw(5, 2, 3)
    for size in (2, 3, 4):
        batches = torch.cartesian_prod(*[torch.arange(5)] * size).view(-1, size)
        joined = population[batches].transpose(1, 2).flatten(2)
        mu, var = joined.mean(2), joined.var(2, correction=0)
        own = batches[:, 0] == 0
        center, spread = mu[own].mean(0), var[own].mean(0)
        layer = fixed(1 / size, mu.mean(0), var.mean(0))
        wanted = (population[0] - center[:, None]) / spread.sqrt()[:, None]
        worst = max(worst, error(layer(population[:1])[0], wanted))
        root = var[own].clamp(min=1e-9).rsqrt().mean(0)
        jensen = max(jensen, float((root * spread.sqrt() - 1).max()))
    return {"output": worst, "Jensen_gap_of_1_over_sigma": jensen}


@check
def independence() -> Mapping[str, float]:
    """Evaluation of images in another order, and one by one."""
    x, layer = draw(6, 4, 9), fixed(0.3, draw(4, seed=1), torch.ones(4).double())
    whole, order = layer(x), torch.tensor([3, 1, 5, 0, 2, 4])
    return {
        "permuted": error(layer(x[order]), whole[order]),
        "one_by_one": error(torch.cat([layer(image[None]) for image in x]), whole),
    }


@check
def towards_ema() -> Mapping[str, float]:
    """The slope of log max |EN - EMA| against log B, by the rule 1/B."""
    x, mu, var = draw(6, 4, 9), draw(4, seed=1), draw(4, seed=2).square() + 0.5
    ema = fixed(0.0, mu, var)(x)
    gaps = [float((fixed(1 / b, mu, var)(x) - ema).abs().max()) for b in (64, 1024)]
    return {"slope": float(torch.tensor(gaps[1] / gaps[0]).log() / torch.tensor(16.0).log())}


@check
def pairs_without_space() -> Mapping[str, float]:
    """Training outputs at B = 2 with one value per image, and the least loss of EN over a grid."""
    layer = norms.EvalNorm(4, group=2, eps=0.0, affine=False, method="fixed").double()
    x = draw(64, 4, seed=1)
    targets = layer(x)
    mu, var = layer.running_mean, layer.running_var
    losses = [
        float((fixed(float(a), mu, var)(x) - targets).abs().mean())
        for a in torch.linspace(0, 0.95, 20)
    ]
    return {"outputs_off_1": float((targets.abs() - 1).abs().max()), "least_loss": min(losses)}

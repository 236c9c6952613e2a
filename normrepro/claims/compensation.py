"""CBN's Taylor compensation (5) to (8), (15): its Jacobian, its error by order of the change."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import cbn, convolution, draw, error, mean

STEPS = (0.008, 0.004, 0.002, 0.001)


@check
def jacobian() -> Mapping[str, float]:
    """d mu_j / d theta_q and d nu_j / d theta_q of a 3x3 convolution, all of them."""
    conv, y = convolution(), draw(4, 3, 5, 4)

    def statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
        x = F.conv2d(y, weight, conv.bias, padding=1)
        return mean(x).flatten(), mean(x.square()).flatten()

    found = torch.func.jacrev(statistics)(conv.weight)
    patches = F.unfold(y, 3, padding=1)  # (N, inputs x 9, positions)
    x = conv(y).flatten(2)
    count = x.shape[0] * x.shape[2]
    own = [
        patches.mean((0, 2)).expand(4, -1),
        2 / count * torch.einsum("nos,nis->oi", x, patches),
    ]
    same = torch.eye(4, dtype=torch.bool)
    return {
        "off_the_diagonal": max(float(j[~same].abs().max()) for j in found),
        "mu_on_it": error(found[0][same].flatten(1), own[0]),
        "nu_on_it": error(found[1][same].flatten(1), own[1]),
    }


def moved(order: int, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mu and nu that the layer gives a batch after theta + h delta, and the new x."""
    conv = convolution()
    layer, images = cbn(conv, 2, order), draw(4, 3, 5, 4)
    with norms.step(layer):
        layer(conv(images))
    conv.weight += h * draw(*conv.weight.shape, seed=8)
    x = conv(images)
    none = torch.zeros(1, 1, 4).double()
    mu, v = layer.past(0, (none, none), x, layer.filters(x.dtype))
    return mu[0, 0], v[0, 0] + mu[0, 0].square(), x


def errors(order: int, h: float) -> tuple[float, float]:
    """Return the largest errors of mu and nu."""
    mu, nu, x = moved(order, h)
    off = mu - mean(x).flatten(), nu - mean(x.square()).flatten()
    return float(off[0].abs().max()), float(off[1].abs().max())


@check
def compensation_orders() -> Mapping[str, float]:
    """Slopes of the errors against the change of the weights, naive and of first order."""
    naive = [max(errors(0, h)) for h in STEPS]
    first = [errors(1, h) for h in STEPS]
    halvings = len(STEPS) - 1
    ratio = torch.tensor([naive[0] / naive[-1], first[0][1] / first[-1][1]]).log2() / halvings
    return {
        "naive_slope": float(ratio[0]),
        "first_order_mu_error": max(e[0] for e in first),
        "first_order_nu_slope": float(ratio[1]),
    }


@check
def second_order() -> Mapping[str, float]:
    """The residual of first order is mean((h delta * y)^2); of second order there is none."""
    h = STEPS[0]
    _, nu, x = moved(1, h)
    change = F.conv2d(draw(4, 3, 5, 4), h * draw(4, 3, 3, 3, seed=8), padding=1)
    residual = mean(x.square()).flatten() - nu
    return {
        "residual_beside_the_formula": error(residual, mean(change.square()).flatten()),
        "second_order_error": max(errors(2, h)),
    }

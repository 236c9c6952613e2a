"""Inference: which layers are affine and fold into a convolution, and what centring does."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from normrepro import convert, norms
from normrepro.claims import check
from normrepro.claims.tools import cbn, convolution, draw, error
from normrepro.norms.fold import fold

AFFINE = ("BatchNorm", "BatchRenorm", "CBN", "MABN")
NOT_AFFINE = ("GroupNorm", "LayerNorm", "InstanceNorm", "EvalNorm")


def defect(name: str) -> float:
    """Return max |f(u/2 + v/2) - f(u)/2 - f(v)/2| of a layer at evaluation."""
    options = {"groups": 2} if name == "GroupNorm" else {}
    options |= (
        {"group": 2, "method": "fixed", "alpha": "1/B", "beta": "1/B"} if name == "EvalNorm" else {}
    )
    layer = getattr(norms, name)(4, affine=False, **options).double().eval()
    layer.adopt(draw(4, seed=2), torch.ones(4).double())
    u, v = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    return float((layer((u + v) / 2) - layer(u) / 2 - layer(v) / 2).abs().max())


@check
def superposition() -> Mapping[str, float]:
    """The largest defect of the affine layers, the smallest of the others."""
    return {
        "BN_BRN_CBN_MABN": max(defect(name) for name in AFFINE),
        "GN_LN_IN_EN": min(defect(name) for name in NOT_AFFINE),
        "EN": defect("EvalNorm"),
    }


@check
def evalnorm_is_not_affine() -> Mapping[str, float]:
    """EvalNorm by alpha = beta = 1/2 beside evaluation by the running averages."""
    return {"EN": defect("EvalNorm"), "EMA": defect("BatchNorm")}


@check
def folding() -> Mapping[str, float]:
    """MABN folded into its convolution, in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    x = draw(4, 3, 8, 8).float()
    net = convert(net, "mabn", group=2, example=x)
    for step in range(3):
        with norms.step(net):
            net(draw(4, 3, 8, 8, seed=step).float())
    whole = net.eval()(x).detach()
    folded = fold(net, example=x)
    return {"error": error(folded(x), whole), "norms_left": len(folded.folding.left)}


@check
def centring() -> Mapping[str, float]:
    """Outputs of centred filters: constant input, equal channel means, unequal ones."""
    conv = nn.Conv2d(3, 6, 3, bias=False).double().requires_grad_(False)
    conv.weight.copy_(draw(6, 3, 3, 3))
    norms.MABN(6).attach(conv)
    flat = torch.full((2, 3, 5, 5), 7.0).double()
    patches = draw(200, 3, 3, 3, seed=1)
    equal = patches - patches.mean(0) + 5.0
    unequal = equal.clone()
    unequal[:, 0] -= 4.0
    return {
        "constant_input": float(conv(flat).abs().max()),
        "equal_means": float(conv(equal).mean(0).abs().max()),
        "unequal_means": float(conv(unequal).mean(0).abs().max()),
    }


@check
def cbn_inference() -> Mapping[str, float]:
    """CBN at evaluation beside BN with the same buffers, and folded."""
    conv = convolution()
    layer = cbn(conv, 3)
    for step in range(4):
        with norms.step(layer):
            layer(conv(draw(4, 3, 5, 4, seed=step)))
    x = conv(draw(4, 3, 5, 4, seed=9))
    wanted = F.batch_norm(x, layer.running_mean, layer.running_var, eps=0)
    net = nn.Sequential(conv, layer).eval()
    found = {"output": error(net[1](x), wanted)}
    found["folded"] = error(fold(net, example=draw(4, 3, 5, 4))(draw(4, 3, 5, 4, seed=9)), wanted)
    return found

"""The degenerate cases that tie the layers of the four papers to each other."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from normrepro import norms
from normrepro.claims import check
from normrepro.claims.tools import draw, error, gradients, mean, variance

Layer = Callable[[Tensor], Tensor]


def batch(shift: float = 0.5) -> Tensor:
    """Draw 8 images of 4 channels."""
    return draw(8, 4, 5, shift=shift)


def make(name: str, **options: object) -> norms.Normalizer:
    """Make a layer without eps and affine part."""
    return getattr(norms, name)(4, eps=0, affine=False, **options).double()


def vanilla(x: Tensor) -> Tensor:
    """BN, written out."""
    return (x - mean(x)) / variance(x).sqrt()


def apart(one: Layer, other: Layer, x: Tensor | None = None, backward: bool = True) -> float:
    """Return how far outputs and input gradients of two layers are apart."""
    own, slow = (gradients(layer, batch() if x is None else x) for layer in (one, other))
    forward = error(own[0], slow[0])
    return max(forward, error(own[2], slow[2])) if backward else forward


@check
def web_batch() -> Mapping[str, float]:
    """BN by groups, joined workers and single images."""
    groups = [lambda x: torch.cat([vanilla(part) for part in x.split(2)])]
    single = lambda x: torch.cat([vanilla(image[None]) for image in x])  # noqa: E731
    return {
        "ghost_BN_of_8_is_BN": apart(make("BatchNorm", group=8), vanilla),
        "ghost_BN_of_2": apart(make("BatchNorm", group=2), groups[0]),
        "ghost_BN_of_1_is_IN": apart(make("BatchNorm", group=1), make("InstanceNorm")),
        "IN_written_out": apart(make("InstanceNorm"), single),
        "SyncBN_over_4_is_BN_joined": apart(make("BatchNorm", group=8, replicas=4), vanilla),
    }


@check
def web_groups() -> Mapping[str, float]:
    """GN's two ends."""
    whole = lambda x: torch.nn.functional.layer_norm(x, x.shape[1:], eps=0)  # noqa: E731
    return {
        "GN_1_is_LN": apart(make("GroupNorm", groups=1), whole),
        "GN_C_is_IN": apart(make("GroupNorm", groups=4), make("InstanceNorm")),
    }


@check
def web_methods() -> Mapping[str, float]:
    """The four papers' layers at their ends."""
    x = batch() - mean(batch())
    modified = make("MABN", memory=1, fp="batch")
    return {
        "CBN_1_is_BN": apart(make("CBN", window=1), vanilla),
        "CBN_in_burn_in_is_BN": apart(make("CBN", window=4, order=0, burn_in=9), vanilla),
        "BRN_1_0_is_BN": apart(make("BatchRenorm", r_max=1, d_max=0), vanilla),
        "MABN_1_1_is_the_modified_form": apart(modified, lambda v: v / mean(v.square()).sqrt()),
        "modified_form_at_mean_0_is_BN_forward": apart(modified, vanilla, x, backward=False),
    }

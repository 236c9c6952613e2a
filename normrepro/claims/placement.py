"""Where XBNBlock puts its batch-free layers in a ResNet-50."""

from collections import Counter
from collections.abc import Mapping

import torch
from torchvision.models import resnet50

from normrepro import convert
from normrepro.claims import check


def layers(norm: str) -> Counter[str]:
    """Count the layers of a converted ResNet-50 by class, without its weights."""
    with torch.device("meta"):
        return Counter(convert(resnet50(), norm).conversion.replaced.values())


@check
def batch_free_layers() -> Mapping[str, float]:
    """How many norms of a ResNet-50 are GN and BN, and how many blocks at every 2nd, 4th, 8th."""
    whole = layers("xbn_p2")
    found = {"GN": whole["GroupNorm"], "BN": whole["BatchNorm"], "all": sum(whole.values())}
    return found | {f"D{d}": layers(f"xbn_p2_d{d}")["GroupNorm"] for d in (2, 4, 8)}

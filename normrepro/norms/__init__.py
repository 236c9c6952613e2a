"""Normalization layers for small batches. Every layer maps (N, C, *) to the same shape."""

from normrepro.norms.base import Normalizer
from normrepro.norms.batch import BatchNorm
from normrepro.norms.cbn import CBN
from normrepro.norms.estimate import evaluation_rule, fit_evalnorm
from normrepro.norms.evalnorm import EvalNorm
from normrepro.norms.frozen import FrozenBatchNorm
from normrepro.norms.ibn import IBN
from normrepro.norms.identity import Identity
from normrepro.norms.instance import GroupNorm, InstanceNorm, LayerNorm
from normrepro.norms.mabn import MABN
from normrepro.norms.renorm import BatchRenorm
from normrepro.norms.steps import step
from normrepro.norms.swap import convert
from normrepro.norms.switchable import SwitchableNorm
from normrepro.norms.whitening import GroupWhitening
from normrepro.norms.xbn import DisturbedBatchNorm, disturbed

__all__ = [
    "CBN",
    "IBN",
    "MABN",
    "BatchNorm",
    "BatchRenorm",
    "DisturbedBatchNorm",
    "EvalNorm",
    "FrozenBatchNorm",
    "GroupNorm",
    "GroupWhitening",
    "Identity",
    "InstanceNorm",
    "LayerNorm",
    "Normalizer",
    "SwitchableNorm",
    "convert",
    "disturbed",
    "evaluation_rule",
    "fit_evalnorm",
    "step",
]

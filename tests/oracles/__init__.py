"""Slow float64 references, written from the equations and independent of the package."""

from .base import Oracle
from .batch import BatchNorm, BatchRenorm, FrozenBatchNorm, constant_limits, ramped_limits
from .cbn import CBN, OfficialCBN
from .conv import Conv
from .evalnorm import EvalNorm
from .instance import GroupNorm, InstanceNorm, LayerNorm
from .mabn import MABN, OfficialMABN, OfficialRootMABN, centred
from .moving import MovingNorm

__all__ = [
    "CBN",
    "MABN",
    "BatchNorm",
    "BatchRenorm",
    "Conv",
    "EvalNorm",
    "FrozenBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "MovingNorm",
    "OfficialCBN",
    "OfficialMABN",
    "OfficialRootMABN",
    "Oracle",
    "centred",
    "constant_limits",
    "ramped_limits",
]

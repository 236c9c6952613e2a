"""Slow float64 references, written from the equations and independent of the package."""

from .base import Oracle
from .batch import BatchNorm, BatchRenorm, FrozenBatchNorm, constant_limits, ramped_limits
from .instance import GroupNorm, InstanceNorm, LayerNorm
from .mabn import MABN, OfficialMABN, OfficialRootMABN, centred

__all__ = [
    "MABN",
    "BatchNorm",
    "BatchRenorm",
    "FrozenBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "OfficialMABN",
    "OfficialRootMABN",
    "Oracle",
    "centred",
    "constant_limits",
    "ramped_limits",
]

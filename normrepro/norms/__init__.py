"""Normalization layers for small batches. Every layer maps (N, C, *) to the same shape."""

from normrepro.norms.base import Normalizer
from normrepro.norms.batch import BatchNorm
from normrepro.norms.instance import GroupNorm, InstanceNorm, LayerNorm
from normrepro.norms.mabn import MABN
from normrepro.norms.renorm import BatchRenorm
from normrepro.norms.steps import step
from normrepro.norms.swap import convert

__all__ = [
    "MABN",
    "BatchNorm",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Normalizer",
    "convert",
    "step",
]

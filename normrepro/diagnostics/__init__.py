"""What a run can record of itself beside errors: `base.py` says how, one file per kind what."""

from normrepro.diagnostics.base import Coefficients, Epoch, TrainError, Watch, layer_names
from normrepro.diagnostics.batch_statistics import BatchStatistics
from normrepro.diagnostics.densities import Densities
from normrepro.diagnostics.gradient_ratios import GradientRatios
from normrepro.diagnostics.shift import Shift

__all__ = [
    "BatchStatistics",
    "Coefficients",
    "Densities",
    "Epoch",
    "GradientRatios",
    "Shift",
    "TrainError",
    "Watch",
    "layer_names",
]

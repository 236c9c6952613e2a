"""normrepro: batch normalization with small batches, as experiments and as layers.

    from normrepro import convert
    model = convert(model, norm="mabn", group=2, example=images)

Names are loaded when they are first used, so that the command line answers before torch is
imported.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "convert": "normrepro.norms.swap",
    "fold": "normrepro.norms.fold",
    "load": "normrepro.training.trained",
    "recalibrate": "normrepro.norms.recalibrate",
}
__all__ = ["convert", "fold", "load", "recalibrate"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'normrepro' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

"""Data sources: training and validation batches of one rank, on its device.

A source has the face of `base.Source`; its YAML in `configs/data` names the class or function as
`source._target_`. It is imported when it is first used: torchvision alone takes two seconds, which
the runs of a table on digits would each pay for nothing.
"""

from importlib import import_module
from typing import Any

from normrepro.data.base import DataError, Source, seed_of

_HOME = {
    "Digits": "normrepro.data.digits",
    "Folder": "normrepro.data.folder",
    "cifar": "normrepro.data.small_sets",
    "mnist": "normrepro.data.small_sets",
}
__all__ = ["DataError", "Digits", "Folder", "Source", "cifar", "mnist", "seed_of"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'normrepro.data' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

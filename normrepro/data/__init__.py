"""Data sources: training and validation batches of one rank, on its device.

A source is a class with the face of `base.Source`; its YAML in `configs/data` names it as
`source._target_`.
"""

from normrepro.data.base import DataError, Source, seed_of
from normrepro.data.digits import Digits
from normrepro.data.folder import Folder

__all__ = ["DataError", "Digits", "Folder", "Source", "seed_of"]

"""A made-up folder of photographs, and opening it."""

from pathlib import Path

import numpy as np
from PIL import Image

from normrepro.data import Folder

CLASSES = ("ape", "bee", "cat")


def make_photos(root: Path, train: int = 7, val: int = 3) -> Path:
    """Write an ImageNet-format folder of three classes; the first JPEG of each class is gray."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (40 + number, 50, 3) if number else (48, 36)
                pixels = random.integers(0, 60, shape) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.JPEG")
    return root


def folder(root: Path, **options) -> Folder:
    """Open a folder as a run of tiny images would."""
    return Folder(
        **{"seed": 0, "total": 4, "size": 32, "workers": 0, "augment": "fb_resnet", **options},
        root=str(root),
    )

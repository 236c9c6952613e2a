"""Read the layout of an ImageNet-format folder and refuse a broken one before training starts.

ROOT/train/<class>/*.jpg and ROOT/val/<class>/*.jpg, the classes sorted by name.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normrepro.data.base import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "expected train/<class>/*.jpg and val/<class>/*.jpg below it"
REMEDY = "set data.root=<folder> or the environment variable DATA_DIR"


@dataclass(frozen=True)
class Split:
    """The images of one split; paths as a byte array, so that workers share its memory."""

    folder: Path
    names: list[str]  # of the classes
    paths: np.ndarray  # (N,) bytes, relative to the folder
    labels: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Return the full path of an image."""
        return os.path.join(self.folder, os.fsdecode(self.paths[index]))


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}. {REMEDY}") from error


def images_below(folder: str, prefix: str) -> Iterator[str]:
    """Yield the images of a class folder and its subfolders, sorted, relative to the split."""
    for entry in sorted(_listed(folder), key=lambda e: e.name):
        if entry.is_dir():
            yield from images_below(entry.path, f"{prefix}/{entry.name}")
        elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
            yield f"{prefix}/{entry.name}"


def scan_split(folder: Path, wanted: list[str] | None = None) -> Split:
    """List a split's classes and images; DataError where a class or everything is missing.

    Args:
        folder: Holds a folder per class.
        wanted: Names of the classes to take, sorted; None takes all.
    """
    entries = _listed(folder)
    names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(f"no class folders in {folder}: {LAYOUT.replace(' below it', '')}")
    if wanted is not None:
        absent = sorted(set(wanted) - set(names))
        if absent:
            raise DataError(
                f"{len(absent)} of the {len(wanted)} classes of data.source.class_list have no "
                f"folder in {folder}: {shorten(absent)}. {REMEDY.capitalize()}, or another list"
            )
        names = wanted
    found = [list(images_below(str(folder / name), name)) for name in names]
    empty = [name for name, paths in zip(names, found, strict=True) if not paths]
    if empty:
        raise DataError(
            f"{len(empty)} class folder(s) in {folder} hold no images: {shorten(empty)}. "
            f"Fill or remove them (known: {' '.join(SUFFIXES)})"
        )
    labels = np.repeat(np.arange(len(names)), [len(paths) for paths in found])
    paths = np.array([os.fsencode(path) for of_class in found for path in of_class])
    return Split(folder, names, paths, labels)


def scan(
    root: str | os.PathLike[str] | None, wanted: list[str] | None = None
) -> tuple[Split, Split]:
    """Return the training and validation splits of an ImageNet-format folder.

    Args:
        root: Folder that holds `train` and `val`.
        wanted: Names of the classes to take, sorted; None takes all.
    """
    if root is None:
        raise DataError(f"data.root is not set: {REMEDY}; {LAYOUT}")
    top = Path(root).expanduser().resolve()
    for folder in (top, top / "train", top / "val"):
        if not folder.is_dir():
            raise DataError(
                f"looked for images in {top}, but {folder} is no folder; {LAYOUT}; {REMEDY}"
            )
    train, val = (scan_split(top / split, wanted) for split in ("train", "val"))
    if train.names != val.names:
        only_train = sorted(set(train.names) - set(val.names))
        only_val = sorted(set(val.names) - set(train.names))
        raise DataError(
            f"the classes of train and val differ in {top}: only in train: {shorten(only_train)}; "
            f"only in val: {shorten(only_val)}. Give both the same class folders, or {REMEDY}"
        )
    return train, val


def shared_files(train: Split, val: Split, most: int = 10000) -> list[str]:
    """Look for validation images among the training images: same class, name, size and content.

    Args:
        train: Training images.
        val: Validation images.
        most: How many files of one name to compare at most.

    Returns:
        A sentence, or nothing.
    """
    names = sorted(set(train.paths.tolist()) & set(val.paths.tolist()))[:most]
    pairs = [[os.path.join(s.folder, os.fsdecode(n)) for s in (train, val)] for n in names]
    same = [os.fsdecode(n) for n, pair in zip(names, pairs, strict=True) if _alike(*pair)]
    if not same:
        return []
    return [f"{len(same)} image(s) are in train and in val: {shorten(same)}"]


def _alike(one: str, other: str) -> bool:
    try:
        return os.path.getsize(one) == os.path.getsize(other) and _digest(one) == _digest(other)
    except OSError:  # whether it can be read is seen when it is decoded
        return False


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def shorten(names: list[str], most: int = 5) -> str:
    """Join names for a message, the first few of a long list."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more

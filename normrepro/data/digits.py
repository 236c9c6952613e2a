"""scikit-learn's 1,797 handwritten digits (8x8, 10 classes), held on the device as one tensor.

They ship with scikit-learn, so the proxies need no download. The split is stratified and always
the same: a run's seed moves initialization, order and augmentation, never the images judged.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normrepro.data.augment import PRESETS, augment_epoch, check_strengths
from normrepro.data.base import (
    Batches,
    DataError,
    augment_options,
    check_batches,
    epoch_order,
    eval_slice,
    generator,
    rank_batches,
)

MEAN, STD = 0.3053, 0.3760  # of all 1,797 images divided by 16
EVAL_BATCH = 256


def stratified(labels: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Draw `count` indices in which every class keeps its share (largest remainders).

    Args:
        labels: Class of each candidate, (N,).
        count: How many indices to draw, at most N.
        draw: Source of randomness.

    Returns:
        Sorted indices into `labels`, (count,).
    """
    exact = labels.bincount().double() * count / len(labels)
    quota = exact.floor().long()
    fraction = exact - quota
    quota[fraction.argsort(descending=True, stable=True)[: count - int(quota.sum())]] += 1
    shuffled = torch.randperm(len(labels), generator=draw)
    picks = [shuffled[labels[shuffled] == c][:n] for c, n in enumerate(quota.tolist())]
    return torch.cat(picks).sort().values


def split(labels: Tensor, val_images: int, train_images: int | None) -> tuple[Tensor, Tensor]:
    """Return training and validation indices; `train_images` keeps only so many of the former."""
    val = stratified(labels, val_images, generator("digits", "val"))
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill(0, val, False).nonzero().flatten()
    if train_images is None:
        return rest, val
    return rest[stratified(labels[rest], train_images, generator("digits", "train"))], val


def load(size: int, channels: int) -> tuple[Tensor, Tensor]:
    """Return the images (1797, channels, size, size) in [0, 1] and their labels (1797,)."""
    from sklearn.datasets import load_digits  # about a second: only when digits are trained

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return images.repeat(1, channels, 1, 1), torch.from_numpy(digits.target).long()


def check_options(
    root: str | None, size: int, channels: int, val_images: int, train_images: int | None
) -> None:
    """Refuse options outside the data set's limits."""
    if root is not None:
        raise DataError(f"data=digits ships with scikit-learn: data.root={root} has no use")
    if not 8 <= size <= 64 or channels not in (1, 3):
        raise DataError(f"digits need data.size 8 to 64, data.channels 1 or 3: {size}, {channels}")
    if not 10 <= val_images <= 1787:
        raise DataError(f"data.source.val_images={val_images} must be 10 to 1787")
    left = 1797 - val_images
    if train_images is not None and not 10 <= train_images <= left:
        raise DataError(f"data.source.train_images={train_images} must be null or 10 to {left}")


class Digits:
    """Training and validation batches of the digits for one rank.

    Args:
        seed: The run's seed: order and augmentation.
        total: Images per optimizer step over all ranks.
        rank: This process.
        world: Number of processes.
        device: Where the images live.
        augment: "none", "light", "strong" or a mapping of strengths (see `data.augment`).
        root: Must stay None; the images come with scikit-learn.
        size: Pixels a side; above 8 the images are enlarged.
        channels: 1, or 3 equal channels for models that expect RGB.
        train_images: Keep only so many training images, stratified; None keeps all.
        val_images: Size of the validation set.
    """

    classes = 10

    def __init__(
        self,
        seed: int,
        total: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        augment: str | Mapping[str, Any] | None = None,
        root: str | None = None,
        size: int = 8,
        channels: int = 1,
        train_images: int | None = None,
        val_images: int = 597,
    ) -> None:
        check_options(root, size, channels, val_images, train_images)
        self.options = augment_options(augment, PRESETS, "data=digits")
        check_strengths(self.options)
        images, labels = load(size, channels)
        train, val = split(labels, val_images, train_images)
        check_batches(total, rank, world, len(train))
        self.seed, self.total, self.rank, self.world = seed, total, rank, world
        self.images, self.labels = images[train].to(device), labels[train].to(device)
        self.val_images, self.val_labels = images[val].to(device), labels[val].to(device)
        self.shape = (channels, size, size)
        self.train_size, self.val_size = len(train), len(val)
        self.steps_per_epoch = self.train_size // total

    def train_batches(self, epoch: int, start: int = 0) -> Batches:
        """Yield this rank's slice of every full global batch of the epoch from step `start` on."""
        # Every rank augments the whole epoch: the same kernels on the same shapes give the same
        # bits whatever the world size, and it costs milliseconds.
        images = normalize(augment_epoch(self.images, self.options, self.seed, epoch))
        order = epoch_order(self.train_size, self.seed, epoch).to(self.labels.device)
        for picks in rank_batches(order, self.total, self.rank, self.world, start):
            yield images[picks], self.labels[picks]

    def eval_batches(self) -> Batches:
        """Yield this rank's part of the validation set; the ranks together see each image once."""
        return self.judged(self.val_images, self.val_labels)

    def train_eval_batches(self) -> Batches:
        """Yield this rank's part of the training images, each once, as evaluation shows images."""
        return self.judged(self.images, self.labels)

    def judged(self, images: Tensor, labels: Tensor) -> Batches:
        """Yield this rank's part of a set of images, in order and without augmentation."""
        mine = eval_slice(len(images), self.rank, self.world)
        for first in range(mine.start, mine.stop, EVAL_BATCH):
            piece = slice(first, min(first + EVAL_BATCH, mine.stop))
            yield normalize(images[piece]), labels[piece]


def normalize(images: Tensor) -> Tensor:
    """Shift and scale images in [0, 1] to mean 0 and variance 1 over the data set."""
    return (images - MEAN) / STD

"""scikit-learn's 1,797 handwritten digits (8x8, 10 classes), held on the device as one tensor.

They ship with scikit-learn, so the proxies need no download. The split is stratified and always
the same: a run's seed moves initialization, order and augmentation, never the images judged.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normrepro.data.augment import PRESETS, augment_epoch, check_strengths
from normrepro.data.base import DataError, augment_options, generator
from normrepro.data.memory import InMemory, stratified
from normrepro.data.small_sets import sample

MEAN, STD = 0.3053, 0.3760  # of all 1,797 images divided by 16
EVAL_BATCH = 256


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


class Digits(InMemory):
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
        train_from: "test" trains on validation images: all of them, or `train_images` of them that
            the run's seed draws (XBNBlock's section 4.2 in small); None or "train" does not.
    """

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
        train_from: str | None = None,
    ) -> None:
        if train_from not in (None, "train", "test"):
            raise DataError(f"data.source.train_from={train_from} must be train or test")
        own = train_images if train_from != "test" else None
        check_options(root, size, channels, val_images, own)
        self.options = augment_options(augment, PRESETS, "data=digits")
        check_strengths(self.options)
        images, labels = load(size, channels)
        train, val = ((images[i], labels[i]) for i in split(labels, val_images, own))
        if train_from == "test":
            train = sample(val, train_images, generator(seed, "digits", "test"))
        super().__init__(train, val, 10, seed, total, rank, world, device, EVAL_BATCH)

    def shown(self, epoch: int) -> Callable[[Tensor], Tensor]:
        """Augment all images; return what maps picks (B,) to the images (B, C, H, W)."""
        # Every rank augments the whole epoch: the same kernels on the same shapes give the same
        # bits whatever the world size, and it costs milliseconds.
        return self.plain(augment_epoch(self.images, self.options, self.seed, epoch)).__getitem__

    def plain(self, images: Tensor) -> Tensor:
        """Shift and scale images in [0, 1] to mean 0 and variance 1 over the data set."""
        return (images - MEAN) / STD

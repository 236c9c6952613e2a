"""Small images kept as bytes, cropped, flipped and scaled a batch at a time on their device.

One number per image is drawn for the whole epoch, in the order of the data set, so what happens to
image i depends on (seed, epoch, i) alone; the pixels are touched only when their batch comes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from normrepro.data.base import DataError, augment_options, generator
from normrepro.data.memory import InMemory, Labelled

PRESETS: dict[str, dict[str, float]] = {
    "none": {"crop": 0, "flip": 0.0},
    # He et al. 2016 (section 4.2 of the first ResNet paper): 4 pixels of padding, a random crop of
    # the image's size, and its mirror image half of the time.
    "standard": {"crop": 4, "flip": 0.5},
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse a padding that is not whole and a probability that is none."""
    crop, flip = options["crop"], options["flip"]
    if isinstance(crop, bool) or not isinstance(crop, int | float) or crop < 0 or crop != int(crop):
        raise DataError(f"recipe.augment.crop={crop} must be the whole pixels of padding, 0 is off")
    if isinstance(flip, bool) or not isinstance(flip, int | float) or not 0 <= flip <= 1:
        raise DataError(f"recipe.augment.flip={flip} must be a number from 0 to 1")


class ByteImages(InMemory):
    """Training and validation batches of one rank out of byte images (N, C, H, W) on its device.

    Args:
        train: Training images (uint8) and labels.
        val: Validation images (uint8) and labels.
        classes: Number of classes.
        mean: Per channel, of bytes divided by 255.
        std: Per channel, likewise.
        augment: "none", "standard" or a mapping with `crop` (padding in pixels) and `flip`.
        data: Name of the data set, for messages.
        seed: The run's seed: order and augmentation.
        total: Images per optimizer step over all ranks.
        rank: This process.
        world: Number of processes.
        device: Where the images live.
        eval_batch: Images per batch of an evaluation.
    """

    def __init__(
        self,
        train: Labelled,
        val: Labelled,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: str | Mapping[str, Any] | None,
        data: str,
        seed: int,
        total: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        eval_batch: int = 1000,
    ) -> None:
        self.options = augment_options(augment, PRESETS, data)
        check_options(self.options)
        super().__init__(train, val, classes, seed, total, rank, world, device, eval_batch)
        mean_, std_ = (torch.tensor(v, device=device).view(-1, 1, 1) * 255 for v in (mean, std))
        self.mean, self.scale = mean_, 1 / std_
        self.padding = mean_.round().to(torch.uint8)

    def shown(self, epoch: int) -> Callable[[Tensor], Tensor]:
        """Draw the epoch's crops and flips; return what maps picks (B,) to images (B, C, H, W)."""
        count, device, seed = self.train_size, self.labels.device, self.seed
        reach, chance = int(self.options["crop"]), self.options["flip"]
        draw = generator(seed, "augment", "crop", epoch)
        corners = torch.randint(2 * reach + 1, (2, count), generator=draw).to(device)
        draw = generator(seed, "augment", "flip", epoch)
        mirrored = (torch.rand(count, generator=draw) < chance).to(device)

        def show(picks: Tensor) -> Tensor:
            images = self.images[picks]
            if reach:
                images = crop(images, *corners[:, picks], reach, self.padding)
            if chance:
                images = torch.where(mirrored[picks, None, None, None], images.flip(3), images)
            return self.plain(images)

        return show

    def plain(self, images: Tensor) -> Tensor:
        """Turn bytes into floats of mean 0 and variance 1 per channel."""
        return images.float().sub_(self.mean).mul_(self.scale)


def crop(images: Tensor, top: Tensor, left: Tensor, reach: int, padding: Tensor) -> Tensor:
    """Cut each image out of itself with a frame around it.

    Args:
        images: (B, C, H, W).
        top: First row of each crop, 0 to 2 reach, (B,).
        left: First column, likewise.
        reach: Width of the frame in pixels.
        padding: Color of the frame, (C, 1, 1).
    """
    count, channels, height, width = images.shape
    frame = padding.expand(count, channels, height + 2 * reach, width + 2 * reach).clone()
    frame[:, :, reach : reach + height, reach : reach + width] = images
    windows = frame.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2r + 1, 2r + 1, H, W), a view
    return windows[torch.arange(count, device=images.device), :, top, left]

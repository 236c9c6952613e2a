"""Augmentation of small images, a whole epoch at once.

Every function takes images (N, C, H, W) in [0, 1] with black = 0, a strength, and a generator. It
draws one set of numbers per image in the order of the data set, so what happens to image i depends
on (seed, epoch, i) alone. Each kind has its own generator: switching one on leaves the others'
draws as they were.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from normrepro.data.base import DataError, generator


def uniform(images: Tensor, limit: float, draw: Generator) -> Tensor:
    """Draw one number from U(-limit, limit) per image, as (N, 1, 1, 1) on the images' device."""
    values = (2 * torch.rand(len(images), generator=draw) - 1) * limit
    return values.to(images).view(-1, 1, 1, 1)


def rotate(images: Tensor, degrees: float, draw: Generator) -> Tensor:
    """Rotate about the middle by U(-degrees, degrees), bilinear, black outside."""
    angle = uniform(images, degrees, draw).flatten().deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def shift(images: Tensor, pixels: float, draw: Generator) -> Tensor:
    """Move by whole pixels, each axis uniform in -pixels..pixels, black where nothing was."""
    reach, (count, _, height, width) = int(pixels), images.shape
    corner = torch.randint(0, 2 * reach + 1, (count, 2), generator=draw).to(images.device)
    rows = corner[:, :1] + torch.arange(height, device=images.device)  # (N, H)
    columns = corner[:, 1:] + torch.arange(width, device=images.device)  # (N, W)
    padded = F.pad(images, [reach] * 4).permute(0, 2, 3, 1)
    image = torch.arange(count, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def cutout(images: Tensor, side: float, draw: Generator) -> Tensor:
    """Blacken a square of `side` pixels around a random pixel, cut off at the border."""
    side, (count, _, height, width) = int(side), images.shape
    middle = torch.rand(count, 2, generator=draw) * torch.tensor([height, width])
    corner = (middle.long() - side // 2).to(images.device)
    rows = torch.arange(height, device=images.device) - corner[:, :1]  # (N, H), 0 at the edge
    columns = torch.arange(width, device=images.device) - corner[:, 1:]  # (N, W)
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return images.masked_fill(inside, 0.0)


def contrast(images: Tensor, limit: float, draw: Generator) -> Tensor:
    """Stretch each image about its mean by a factor from U(1 - limit, 1 + limit)."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (1 + uniform(images, limit, draw)) * (images - mean)


def brightness(images: Tensor, limit: float, draw: Generator) -> Tensor:
    """Add U(-limit, limit) to each image."""
    return images + uniform(images, limit, draw)


def noise(images: Tensor, std: float, draw: Generator) -> Tensor:
    """Add independent Gaussian noise to every value."""
    return images + std * torch.randn(images.shape, generator=draw).to(images)


# In the order of application: geometry, then holes, then values.
KINDS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "rotate": rotate,
    "shift": shift,
    "cutout": cutout,
    "contrast": contrast,
    "brightness": brightness,
    "noise": noise,
}

PRESETS: dict[str, dict[str, float]] = {
    "none": dict.fromkeys(KINDS, 0.0),
    "light": {"shift": 1},
    "strong": {"rotate": 15, "shift": 1, "contrast": 0.3, "brightness": 0.2, "noise": 0.1},
}


def check_strengths(options: Mapping[str, object]) -> None:
    """Refuse strengths that are not numbers from 0 up, and pixels that are not whole."""
    for kind, strength in options.items():
        if isinstance(strength, bool) or not isinstance(strength, int | float) or strength < 0:
            raise DataError(f"recipe.augment.{kind}={strength} must be a number, 0 (off) or more")
        if kind in ("shift", "cutout") and strength != int(strength):
            raise DataError(f"recipe.augment.{kind}={strength} must be a whole number of pixels")


def augment_epoch(images: Tensor, options: Mapping[str, float], seed: int, epoch: int) -> Tensor:
    """Return the training images (N, C, H, W) as epoch `epoch` sees them."""
    for kind, apply in KINDS.items():
        if options[kind]:
            images = apply(images, options[kind], generator(seed, "augment", kind, epoch))
    return images

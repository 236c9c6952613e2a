"""Crops and colors for photographs, by torchvision's v2 transforms.

Presets: `standard` is the random area-and-aspect crop with a flip; `fb_resnet` adds the color
jitter and lighting of fb.resnet.torch (Gross & Wilber 2016), which MABN cites; `mabn_code` follows
MABN's released code: square crops, flip, lighting, no jitter.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from normrepro.data.base import DataError

STANDARD = {"area": [0.08, 1.0], "aspect": [3 / 4, 4 / 3], "flip": 0.5}
PRESETS: dict[str, dict[str, Any]] = {
    # area null: no random crop but the one of evaluation.
    "none": {"area": None, "aspect": [1.0, 1.0], "flip": 0.0, "jitter": 0.0, "lighting": 0.0},
    "standard": STANDARD,
    "fb_resnet": {**STANDARD, "jitter": 0.4, "lighting": 0.1},
    "mabn_code": {**STANDARD, "aspect": [1.0, 1.0], "lighting": 0.1},
}

# Principal components of ImageNet's RGB values (AlexNet's color augmentation, fb.resnet.torch).
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with ranges as tuples; DataError where one is out of its limits."""
    checked = dict(options)
    for kind, limit in (("flip", 1.0), ("jitter", 1.0), ("lighting", float("inf"))):
        value = options[kind]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
            raise DataError(f"recipe.augment.{kind}={value} must be a number from 0 to {limit:g}")
    for kind, limit in (("area", 1.0), ("aspect", float("inf"))):
        if options[kind] is None and kind == "area":
            continue
        try:
            low, high = checked[kind] = tuple(float(value) for value in options[kind])
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not 0 < low <= high <= limit:
            raise DataError(
                f"recipe.augment.{kind}={options[kind]} must be [low, high], 0 < low <= high"
                + (" <= 1" if kind == "area" else "")
            )
    return checked


def eval_crop(size: int) -> v2.Compose:
    """Short side to 256/224 of the crop, then the middle square, as in evaluation everywhere."""
    resize = v2.Resize(round(size * 256 / 224), InterpolationMode.BILINEAR, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)])


def train_crop(size: int, options: Mapping[str, Any]) -> v2.Compose:
    """Random crop, flip and color jitter of a PIL image, drawing from torch's global generator."""
    steps: list[torch.nn.Module] = [eval_crop(size)]
    if options["area"] is not None:
        area, aspect = options["area"], options["aspect"]
        steps = [v2.RandomResizedCrop(size, scale=area, ratio=aspect, antialias=True)]
    if options["flip"]:
        steps.append(v2.RandomHorizontalFlip(options["flip"]))
    if options["jitter"]:
        steps.append(v2.ColorJitter(*[options["jitter"]] * 3))
    return v2.Compose(steps)


def lighting(std: float) -> Tensor:
    """Draw the color offset (3,) of one image: principal components times N(0, std^2)."""
    if not std:
        return torch.zeros(3)
    strengths = torch.randn(3) * std * torch.tensor(EIGENVALUES)
    return torch.tensor(EIGENVECTORS) @ strengths

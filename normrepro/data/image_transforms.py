"""Crops and colors for photographs, by torchvision's v2 transforms, and the presets of the papers.

- `standard`: a random crop of varied area and aspect, and a flip (Szegedy et al. 2015). XBNBlock:
  released code.
- `fb_resnet`: adds the color jitter and lighting of fb.resnet.torch (Gross & Wilber 2016), which
  MABN cites, as does the paper of GN that CBN follows.
- `mabn_code`: MABN's released code: square crops, lighting, flip, and the pixels as B, G, R from 0
  to 255 without mean and deviation. Where no such crop fits the code pads with black after 10
  attempts; here, as everywhere, the middle is taken.
- `inception`: EvalNorm's "data augmentation from" Inception-v4's paper, which describes none.
  Assumed: the crop and flip of `standard` with the color distortion of TensorFlow's Inception
  code (brightness 32/255, saturation and contrast 0.5, hue 0.2), in v2's multiplicative form.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from normrepro.data.base import DataError

STANDARD = {"area": [0.08, 1.0], "aspect": [3 / 4, 4 / 3], "flip": 0.5}
PRESETS: dict[str, dict[str, Any]] = {
    "none": {
        "area": None,  # no random crop but the one of evaluation
        "aspect": [1.0, 1.0],
        "flip": 0.0,
        "jitter": 0.0,  # strength, or one each for brightness, contrast, saturation and hue
        "lighting": 0.0,
        "pixels": "normalized",  # or bgr_bytes; in evaluation too
    },
    "standard": STANDARD,
    "fb_resnet": {**STANDARD, "jitter": 0.4, "lighting": 0.1},
    "mabn_code": {**STANDARD, "aspect": [1.0, 1.0], "lighting": 0.1, "pixels": "bgr_bytes"},
    "inception": {**STANDARD, "jitter": [32 / 255, 0.5, 0.5, 0.2]},
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images
PIXELS = ("normalized", "bgr_bytes")

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
    for kind, limit in (("flip", 1.0), ("lighting", float("inf"))):
        value = options[kind]
        if not _between(value, limit):
            raise DataError(f"recipe.augment.{kind}={value} must be a number from 0 to {limit:g}")
    checked["jitter"] = _jitter(options["jitter"])
    if options["pixels"] not in PIXELS:
        raise DataError(f"recipe.augment.pixels={options['pixels']} is none of {', '.join(PIXELS)}")
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


def _between(value: object, limit: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= limit


def _jitter(given: Any) -> tuple[float, ...]:
    """Return the strengths of brightness, contrast, saturation and hue."""
    values = (given, given, given, 0.0) if isinstance(given, int | float) else tuple(given or ())
    limits = (1.0, 1.0, 1.0, 0.5)
    if len(values) != 4 or not all(map(_between, values, limits)):
        raise DataError(
            f"recipe.augment.jitter={given} must be a number from 0 to 1, or four of them: "
            "[brightness, contrast, saturation, hue], hue to 0.5"
        )
    return values


def eval_crop(size: int) -> v2.Compose:
    """Short side to 256/224 of the crop, then the middle square, as in evaluation everywhere."""
    resize = v2.Resize(round(size * 256 / 224), InterpolationMode.BILINEAR, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)])


def train_crop(size: int, options: Mapping[str, Any]) -> v2.Compose:
    """Random crop, flip and color jitter of bytes (3, H, W), by torch's global generator."""
    steps: list[torch.nn.Module] = [eval_crop(size)]
    if options["area"] is not None:
        area, aspect = options["area"], options["aspect"]
        steps = [v2.RandomResizedCrop(size, scale=area, ratio=aspect, antialias=True)]
    if options["flip"]:
        steps.append(v2.RandomHorizontalFlip(options["flip"]))
    if any(options["jitter"]):
        steps.append(v2.ColorJitter(*options["jitter"]))
    return v2.Compose(steps)


def lighting(std: float) -> Tensor:
    """Draw the color offset (3,) of one image: principal components times N(0, std^2)."""
    if not std:
        return torch.zeros(3)
    strengths = torch.randn(3) * std * torch.tensor(EIGENVALUES)
    return torch.tensor(EIGENVECTORS) @ strengths


def scale(images: Tensor, light: Tensor, pixels: str) -> Tensor:
    """Turn bytes into the floats that a model takes.

    Args:
        images: RGB bytes (B, 3, S, S).
        light: Color offsets (B, 3), for images in [0, 1].
        pixels: "normalized": RGB of mean 0 and variance 1; "bgr_bytes": B, G, R from 0 to 255,
            whole numbers.
    """
    offset = light[:, :, None, None]
    if pixels == "bgr_bytes":
        return (images + 255 * offset).clamp(0, 255).floor().flip(1)
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 + offset - mean) / std

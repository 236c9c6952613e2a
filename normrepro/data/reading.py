"""From an image file to RGB bytes.

JPEGs are decoded by simplejpeg (libjpeg-turbo), the fastest decoder by measurement that a package
index has for every platform (`scripts/bench.py --parts data`). What it does not take, CMYK and
damaged files among them, goes to Pillow, which has the last word on whether a file can be read.
Both give the same pixels.
"""

import struct
import warnings
from io import BytesIO

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from normrepro.data.base import DataError

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def read(path: str) -> Tensor:
    """Decode a file as RGB bytes (3, H, W); DataError names a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(b"\xff\xd8"):
            try:
                pixels = simplejpeg.decode_jpeg(content, "RGB")
            except ValueError:  # damaged, or a kind of JPEG that only Pillow knows
                pixels = by_pillow(content)
        else:
            pixels = by_pillow(content)
        return torch.from_numpy(pixels).permute(2, 0, 1)
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def by_pillow(content: bytes) -> np.ndarray:
    """Decode any format that Pillow knows as RGB bytes (H, W, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged EXIF data, of palettes: pixels are unharmed
        with Image.open(BytesIO(content)) as image:
            image.load()
            return np.array(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: 16 bits by their upper byte (Pillow would cut them off), alpha dropped."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")

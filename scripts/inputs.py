"""Time what feeds the network, for bench.py: decoders, and the data path of a CIFAR step."""

import argparse
import importlib
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timing
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from normrepro.data.byte_images import ByteImages
from normrepro.data.image_transforms import PRESETS, check_options, train_crop
from normrepro.data.reading import by_pillow

TITLE = "The data path"
SIZE, TOTAL = 224, 128
Decode = Callable[[bytes], np.ndarray | Tensor]  # bytes of a file to (H, W, 3)


def table(
    args: argparse.Namespace, step: Callable[[torch.memory_format], timing.Run]
) -> Iterator[str]:
    """Measure both halves; `step` builds a ResNet-20 training step."""
    files = photographs(args.photos)
    kind = f"{len(files)} JPEGs, {sum(map(len, files)) / len(files) / 1e3:.0f} kB on average"
    yield f"Images per second and core (CPU time): {kind}, cropped to {SIZE} as `standard` does."
    yield ""
    yield "| decoder | decoding | and crop, flip |"
    yield "|---|---|---|"
    for name, alone, whole in decoders(files, 3 if args.quick else 10):
        yield f"| {name} | {alone:.0f} | {whole:.0f} |"
    yield ""
    yield f"CIFAR's crop, flip and scaling of {TOTAL} images on {args.device}, and a training step:"
    yield ""
    yield "| memory format | data path, ms | step of ResNet-20, ms | share |"
    yield "|---|---|---|---|"
    for form, name in ((torch.contiguous_format, "NCHW"), (torch.channels_last, "channels_last")):
        ours, theirs = cifar(form, step(form), args)
        yield f"| {name} | {1e3 * ours:.2f} | {1e3 * theirs:.1f} | {100 * ours / theirs:.2f} % |"


# -- decoders --------------------------------------------------------------------------------------


def photographs(folder: Path | None) -> list[bytes]:
    """Return the JPEGs below a folder, or else scikit-learn's two in ImageNet's usual size."""
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg"))
        return [path.read_bytes() for path in paths[:200]]
    from sklearn.datasets import load_sample_images

    files = []
    for pixels in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(pixels).resize((500, 375)).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    return files


def decoders(files: list[bytes], rounds: int) -> Iterator[tuple[str, float, float]]:
    """Yield images per second of each decoder alone, and with crop and flip on its bytes."""
    crop = train_crop(SIZE, check_options({**PRESETS["none"], **PRESETS["standard"]}))
    pillow = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
    ways: dict[str, tuple[Decode, Callable]] = {
        "Pillow, crop by Pillow": (_image, pillow),
        "Pillow in 1/2 size where it is large, crop by Pillow": (_draft, pillow),
        "Pillow, crop by torch": (by_pillow, crop),
    }
    ways |= {name: (decode, crop) for name, decode in others()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (decode, cut) in ways.items():
            alone = cpu_time(lambda f, decode=decode: decode(f), files)
            whole = cpu_time(lambda f, decode=decode, cut=cut: cut(_chw(decode(f))), files)
            times[name].append((alone, whole))
    for name, pairs in times.items():
        alone, whole = (
            len(files) / statistics.median(values) for values in zip(*pairs, strict=True)
        )
        yield name, alone, whole


def others() -> Iterator[tuple[str, Decode]]:
    """Yield the decoders beside Pillow that are installed."""
    import simplejpeg

    yield "simplejpeg, crop by torch (ours)", partial(simplejpeg.decode_jpeg, colorspace="RGB")
    io_ = importlib.import_module("torchvision.io")
    if hasattr(io_, "decode_jpeg"):

        def decode(content: bytes) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated since torchvision 0.29
                packed = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                return io_.decode_jpeg(packed, mode=io_.ImageReadMode.RGB).permute(1, 2, 0)

        yield "torchvision.io (deprecated), crop by torch", decode
    try:
        turbo = importlib.import_module("turbojpeg")
        yield (
            "PyTurboJPEG, crop by torch",
            partial(turbo.TurboJPEG().decode, pixel_format=turbo.TJPF_RGB),
        )
    except (ImportError, RuntimeError, OSError):  # it needs the system's libturbojpeg
        pass


def _image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def _draft(content: bytes) -> Image.Image:
    """Decode by the JPEG's own scaling; no crop of at least SIZE pixels loses by it."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (2 * SIZE, 2 * SIZE))
    return image.convert("RGB")


def _chw(pixels: np.ndarray | Tensor | Image.Image) -> Tensor | Image.Image:
    return pixels if isinstance(pixels, Image.Image) else torch.as_tensor(pixels).permute(2, 0, 1)


def cpu_time(run: Callable[[bytes], object], files: list[bytes]) -> float:
    """Return the CPU seconds that a function takes for all files."""
    torch.manual_seed(0)
    begin = time.process_time()
    for content in files:
        run(content)
    return time.process_time() - begin


# -- CIFAR -----------------------------------------------------------------------------------------


def cifar(
    form: torch.memory_format, step: timing.Run, args: argparse.Namespace
) -> tuple[float, float]:
    """Return the median seconds of a batch's data path and of a training step, taken in turns."""
    part = torch.randint(256, (50000, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (50000,))
    options = {"augment": "standard", "data": "random", "seed": 0, "total": TOTAL}
    data = ByteImages(part, part, 10, (0.5,) * 3, (0.25,) * 3, **options, device=args.device)
    batches = data.train_batches(0)

    def feed() -> None:
        next(batches)[0].to(memory_format=form)

    pairs = [
        (timing.seconds(feed, args.device), timing.seconds(step, args.device))
        for _ in range(args.pairs + timing.WARM)
    ]
    return tuple(statistics.median(values) for values in zip(*pairs[timing.WARM :], strict=True))

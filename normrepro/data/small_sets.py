"""CIFAR-10, CIFAR-100 and MNIST: torchvision's readers, then one tensor of bytes on the device."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from normrepro.data.base import DataError, generator
from normrepro.data.byte_images import ByteImages
from normrepro.data.memory import Labelled, stratified

# Mean and standard deviation of the training images' channels, as bytes divided by 255. CIFAR:
# fb.resnet.torch (Gross & Wilber 2016); MNIST: PyTorch's example, the training set's own figures.
STATISTICS = {
    "CIFAR10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "CIFAR100": ((129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)),
    "MNIST": ((0.1307,), (0.3081,)),
}
FOLDERS = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python", "MNIST": "MNIST/raw"}
SIZES = {"CIFAR10": 32, "CIFAR100": 32, "MNIST": 28}
BROKEN = (RuntimeError, OSError, ValueError, AssertionError, EOFError, KeyError)


def cifar(
    seed: int,
    total: int,
    classes: int = 10,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    augment: str | Mapping[str, Any] | None = None,
    root: str | None = None,
    size: int = 32,
    train_images: int | None = None,
    download: bool = False,
) -> ByteImages:
    """Open CIFAR-10 or CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 3x32x32.

    Args:
        seed: The run's seed: order and augmentation.
        total: Images per optimizer step over all ranks.
        classes: 10 or 100.
        rank: This process.
        world: Number of processes.
        device: Where the images live.
        augment: See `ByteImages`.
        root: Folder that holds `cifar-10-batches-py` or `cifar-100-python`.
        size: Must be 32.
        train_images: Keep only so many training images, stratified and the same for every seed.
        download: Fetch what is missing.
    """
    if classes not in (10, 100):
        raise DataError(f"data.source.classes={classes} must be 10 or 100")
    name = f"CIFAR{classes}"
    train, val = load(name, root, size, download, ("train", "val"))
    train = subset(train, train_images, generator(name, "train"))
    ranks = {"seed": seed, "total": total, "rank": rank, "world": world, "device": device}
    return ByteImages(
        train, val, classes, *STATISTICS[name], augment, f"data=cifar{classes}", **ranks
    )


def mnist(
    seed: int,
    total: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    augment: str | Mapping[str, Any] | None = None,
    root: str | None = None,
    size: int = 28,
    train_from: str = "train",
    train_images: int | None = None,
    normalize: bool = True,
    download: bool = False,
) -> ByteImages:
    """Open MNIST (LeCun et al. 1998): 60,000 and 10,000 images of 1x28x28.

    Args:
        seed: The run's seed: order and augmentation, and what `train_from="test"` draws.
        total: Images per optimizer step over all ranks.
        rank: This process.
        world: Number of processes.
        device: Where the images live.
        augment: See `ByteImages`.
        root: Folder that holds `MNIST/raw`.
        size: Must be 28.
        train_from: Which of the two sets is trained on. "test" judges on the images that it trains
            on, as XBNBlock's section 4.2 does to rule out (or to dose) a shift of the input.
        train_images: Keep only so many training images: of "train" stratified and the same for
            every seed; of "test" sampled by the seed, for the paper has its S "sampled from" S'.
        normalize: Scale to mean 0 and variance 1; else to [0, 1].
        download: Fetch what is missing.
    """
    if train_from not in ("train", "test"):
        raise DataError(f"data.source.train_from={train_from} must be train or test")
    wanted = ("train" if train_from == "train" else "val", "val")
    train, val = load("MNIST", root, size, download, wanted)
    if train_from == "train":
        train = subset(train, train_images, generator("MNIST", "train"))
    else:
        train = sample(train, train_images, generator(seed, "MNIST", "test"))
    statistics = STATISTICS["MNIST"] if normalize else ((0.0,), (1.0,))
    ranks = {"seed": seed, "total": total, "rank": rank, "world": world, "device": device}
    return ByteImages(train, val, 10, *statistics, augment, "data=mnist", **ranks)


def load(
    name: str, root: str | None, size: int, download: bool, splits: tuple[str, ...]
) -> list[Labelled]:
    """Read splits of a data set as bytes (N, C, H, W) and labels (N,).

    Raises:
        DataError: It is not where it was looked for, or damaged.
    """
    if size != SIZES[name]:
        raise DataError(f"{name} has images of {SIZES[name]} pixels: set data.size={SIZES[name]}")
    if root is None:
        raise DataError(f"data.root is not set: {remedy(name)}")
    top = Path(root).expanduser().resolve()
    return [as_tensors(read(name, top, split == "train", download)) for split in splits]


def read(name: str, top: Path, train: bool, download: bool) -> Dataset:
    """Open one split by torchvision, downloading first where asked to."""
    from torchvision import datasets  # two seconds: only when such a set is trained

    opens: Callable[..., Dataset] = getattr(datasets, name)
    if download:
        fetch(opens, top)
    try:
        return opens(str(top), train=train)
    except (*BROKEN, pickle.UnpicklingError) as error:
        folder = top / FOLDERS[name]
        state = "holds damaged or incomplete files" if folder.is_dir() else "does not exist"
        raise DataError(f"looked for {name} in {folder}, which {state}: {remedy(name)}") from error


def fetch(opens: Callable[..., Dataset], top: Path) -> None:
    """Download into a folder, one process of a machine at a time; complete files are left alone."""
    import fcntl

    try:
        top.mkdir(parents=True, exist_ok=True)
        with open(top / ".download.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            opens(str(top), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.download=true: cannot download into {top}: {error}") from error


def remedy(name: str) -> str:
    """Say how to get a data set in place."""
    return (
        f"set data.root=<folder that holds {FOLDERS[name]}> or the environment variable DATA_DIR, "
        "or data.download=true where there is internet"
    )


def as_tensors(split: Any) -> Labelled:
    """Return the bytes (N, C, H, W) and labels (N,) of a torchvision data set."""
    images = torch.as_tensor(split.data)
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(split.targets)


def subset(part: Labelled, count: int | None, draw: torch.Generator) -> Labelled:
    """Keep `count` images in which every class keeps its share; None keeps all."""
    return _keep(part, count, lambda labels, n: stratified(labels, n, draw))


def sample(part: Labelled, count: int | None, draw: torch.Generator) -> Labelled:
    """Keep `count` images drawn uniformly without replacement; None keeps all."""
    return _keep(part, count, lambda labels, n: torch.randperm(len(labels), generator=draw)[:n])


def _keep(part: Labelled, count: int | None, pick: Callable[[Tensor, int], Tensor]) -> Labelled:
    images, labels = part
    if count is None:
        return part
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(labels):
        raise DataError(f"data.source.train_images={count} must be null or 1 to {len(labels)}")
    kept = pick(labels, count)
    return images[kept], labels[kept]

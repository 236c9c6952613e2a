"""Images in an ImageNet-format folder, decoded and augmented by worker processes.

The random numbers of an image come from (seed, epoch, index of the image), set inside the worker
that decodes it: neither the number of workers nor the number of ranks changes a pixel. Workers send
bytes; the scaling to floats happens on the device.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from normrepro.data.base import (
    Batches,
    DataError,
    augment_options,
    check_batches,
    epoch_order,
    eval_slice,
    generator,
    rank_batches,
    seed_of,
)
from normrepro.data.class_list import class_names
from normrepro.data.image_transforms import PRESETS, check_options, eval_crop, lighting, train_crop
from normrepro.data.scan import Split, scan

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images
EVAL_BATCH = 128
Key = tuple[int, int]  # (epoch, index of the image)


class Images(Dataset[tuple[Tensor, int, Tensor]]):
    """Decoded crops by (epoch, index): bytes (3, S, S), the label, a color offset (3,)."""

    def __init__(self, split: Split, crop: v2.Compose, light: float, seed: int) -> None:
        self.split, self.crop, self.light, self.seed = split, crop, light, seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int, Tensor]:
        epoch, index = key
        state = torch.get_rng_state()  # without workers this is the training process's own
        torch.default_generator.manual_seed(seed_of(self.seed, "augment", epoch, index))
        try:
            image = pil_to_tensor(self.crop(read(self.split.path(index))))
            return image, int(self.split.labels[index]), lighting(self.light)
        finally:
            torch.set_rng_state(state)


def read(path: str) -> Image.Image:
    """Decode an image file as RGB; DataError names a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


class EpochKeys(Sampler[list[Key]]):
    """This rank's keys of an epoch, one list a step; `epoch` and `start` are set before each."""

    def __init__(self, size: int, seed: int, total: int, rank: int, world: int) -> None:
        self.size, self.seed, self.total, self.rank, self.world = size, seed, total, rank, world
        self.epoch, self.start = 0, 0

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = self.epoch, epoch_order(self.size, self.seed, self.epoch)
        steps = rank_batches(order, self.total, self.rank, self.world, self.start)
        return ([(epoch, index) for index in picks.tolist()] for picks in steps)


def eval_keys(size: int, rank: int, world: int) -> list[list[Key]]:
    """Return the rank's validation keys in batches; the ranks together name each image once."""
    mine = eval_slice(size, rank, world)
    firsts = range(mine.start, mine.stop, EVAL_BATCH)
    return [[(0, i) for i in range(f, min(f + EVAL_BATCH, mine.stop))] for f in firsts]


def worker_count(workers: int | None) -> int:
    """Return the number of decoding processes: as given, or this rank's share of the cores."""
    if workers is not None:
        return workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class Folder:
    """Training and validation batches of an ImageNet-format folder for one rank.

    Args:
        seed: The run's seed: order and augmentation.
        total: Images per optimizer step over all ranks.
        rank: This process.
        world: Number of processes.
        device: Where the batches go.
        augment: "none", "standard", "fb_resnet", "mabn_code" or a mapping (see `image_transforms`).
        root: Folder with `train` and `val`, a folder per class in each.
        size: Pixels a side of the square crops.
        workers: Decoding processes; 0 decodes in this one, None takes the rank's share of cores.
        class_list: Take only these classes: names, a file of names, or a list that ships with
            normrepro ("imagenet100"); None takes all.
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
        size: int = 224,
        workers: int | None = None,
        class_list: str | Sequence[str] | None = None,
    ) -> None:
        if size < 8:
            raise DataError(f"data.size={size} must be 8 pixels or more")
        options = check_options(augment_options(augment, PRESETS, "folders of images"))
        train, val = scan(root, class_names(class_list))
        check_batches(total, rank, world, len(train))
        self.device, self.workers = torch.device(device), worker_count(workers)
        self.class_names, self.classes = train.names, len(train.names)
        self.shape, self.train_size, self.val_size = (3, size, size), len(train), len(val)
        self.steps_per_epoch = self.train_size // total
        self.keys = EpochKeys(self.train_size, seed, total, rank, world)
        images = Images(train, train_crop(size, options), options["lighting"], seed)
        self.train_loader = self.loader(images, self.keys)
        self.val_loader = self.judge(val, eval_crop(size), seed, rank, world)
        self.train_eval_loader = self.judge(train, eval_crop(size), seed, rank, world)
        self.mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(3, 1, 1)

    def loader(self, images: Images, batches: Sampler[list[Key]] | list[list[Key]]) -> DataLoader:
        """Return a loader whose workers live as long as this object."""
        return DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=generator("workers"),  # else each epoch would draw from the global state
        )

    def judge(self, split: Split, crop: v2.Compose, seed: int, rank: int, world: int) -> DataLoader:
        """Return a loader of this rank's part of a split, in order and without augmentation."""
        return self.loader(Images(split, crop, 0.0, seed), eval_keys(len(split), rank, world))

    def train_batches(self, epoch: int, start: int = 0) -> Batches:
        """Yield this rank's slice of every full global batch of the epoch from step `start` on."""
        self.keys.epoch, self.keys.start = epoch, start
        return (self.finish(*batch) for batch in self.train_loader)

    def eval_batches(self) -> Batches:
        """Yield this rank's part of the validation set; the ranks together see each image once."""
        return (self.finish(*batch) for batch in self.val_loader)

    def train_eval_batches(self) -> Batches:
        """Yield this rank's part of the training images, each once, as evaluation shows images."""
        return (self.finish(*batch) for batch in self.train_eval_loader)

    def finish(self, image: Tensor, label: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch to the device and scale its bytes to normalized floats."""
        image, label, light = (t.to(self.device, non_blocking=True) for t in (image, label, light))
        return (image.float() / 255 + light[:, :, None, None] - self.mean) / self.std, label

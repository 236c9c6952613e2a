"""Images in an ImageNet-format folder, decoded and augmented by worker processes.

Workers send bytes; the scaling to floats happens on the device. A training image that cannot be
read is replaced and counted; in evaluation it is an error.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from normrepro.data.base import (
    Batches,
    DataError,
    augment_options,
    check_batches,
    generator,
    lost_workers_named,
)
from normrepro.data.class_list import class_names
from normrepro.data.image_transforms import PRESETS, check_options, eval_crop, scale, train_crop
from normrepro.data.images import EpochKeys, Images, Key, eval_keys, worker_count
from normrepro.data.scan import scan, shared_files, shorten

log = logging.getLogger("normrepro")


class Folder:
    """Training and validation batches of an ImageNet-format folder for one rank.

    Args:
        seed: The run's seed: order and augmentation.
        total: Images per optimizer step over all ranks.
        rank: This process.
        world: Number of processes.
        device: Where the batches go.
        augment: Name of a preset of `image_transforms`, or a mapping of its options.
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
        self.options = check_options(augment_options(augment, PRESETS, "folders of images"))
        train, val = scan(root, class_names(class_list))
        check_batches(total, rank, world, len(train))
        self.device, self.workers = torch.device(device), worker_count(workers)
        self.train, self.class_names, self.classes = train, train.names, len(train.names)
        self.shape, self.train_size, self.val_size = (3, size, size), len(train), len(val)
        self.steps_per_epoch, self.skipped = self.train_size // total, 0
        self.notes = [] if rank else shared_files(train, val)
        for note in self.notes:
            log.warning("%s", note)
        light, crops = self.options["lighting"], (train_crop(size, self.options), eval_crop(size))
        self.keys = EpochKeys(self.train_size, seed, total, rank, world)
        self.train_loader = self.loader(Images(train, crops[0], light, seed, True), self.keys)
        keys = [eval_keys(count, rank, world) for count in (self.val_size, self.train_size)]
        self.val_loader = self.loader(Images(val, crops[1], 0.0, seed, False), keys[0])
        self.train_eval_loader = self.loader(Images(train, crops[1], 0.0, seed, True), keys[1])

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

    def train_batches(self, epoch: int, start: int = 0) -> Batches:
        """Yield this rank's slice of every full global batch of the epoch from step `start` on.

        `skipped` counts the images that could not be read, and others shown in their place.
        """
        self.keys.epoch, self.keys.start = epoch, start
        if not start:  # else a checkpoint's count goes on
            self.skipped = 0
        unreadable: list[str] = []
        try:
            for *batch, unread in self.batches(self.train_loader):
                found = [self.train.path(index) for index in unread[unread >= 0].tolist()]
                unreadable += found
                self.skipped += len(found)
                yield self.finish(*batch)
        finally:
            if unreadable:
                log.warning(
                    "epoch %d: %d training image(s) cannot be read, and others stood in: %s",
                    epoch + 1,
                    len(unreadable),
                    shorten(sorted(unreadable)),
                )

    def eval_batches(self) -> Batches:
        """Yield this rank's part of the validation set; the ranks together see each image once."""
        return (self.finish(*batch) for *batch, _ in self.batches(self.val_loader))

    def train_eval_batches(self) -> Batches:
        """Yield this rank's part of the training images, each once, as evaluation shows images."""
        return (self.finish(*batch) for *batch, _ in self.batches(self.train_eval_loader))

    def batches(self, loader: DataLoader) -> Iterator[list[Tensor]]:
        """Iterate over a loader; the loss of a worker becomes a DataError."""
        with lost_workers_named():
            yield from loader

    def finish(self, image: Tensor, label: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch to the device and turn its bytes into the floats that the model takes."""
        image, label, light = (t.to(self.device, non_blocking=True) for t in (image, label, light))
        return scale(image, light, self.options["pixels"]), label

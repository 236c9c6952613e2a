"""The images of a folder as worker processes see them: decoded and augmented by (epoch, index).

The random numbers of an image come from (seed, epoch, index of the image), set inside the worker
that decodes it: neither the number of workers nor the number of ranks changes a pixel.
"""

import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from normrepro.data.base import DataError, epoch_order, eval_slice, generator, rank_batches, seed_of
from normrepro.data.image_transforms import lighting
from normrepro.data.reading import read
from normrepro.data.scan import Split

EVAL_BATCH = 128
TRIES = 10  # images drawn in the place of one that cannot be read
Key = tuple[int, int]  # (epoch, index of the image)
Item = tuple[Tensor, int, Tensor, int]


class Images(Dataset[Item]):
    """Items by (epoch, index).

    An item is a crop (3, S, S) in bytes, its label, a color offset (3,), and the index that could
    not be read, or -1.

    Args:
        split: The files.
        crop: From bytes (3, H, W) to bytes (3, S, S), drawing from torch's global generator.
        light: Standard deviation of the color offset's strengths.
        seed: The run's seed.
        forgiving: Show another image in the place of one that cannot be read; else raise DataError.
    """

    def __init__(
        self,
        split: Split,
        crop: Callable[[Tensor], Tensor],
        light: float,
        seed: int,
        forgiving: bool,
    ) -> None:
        self.split, self.crop, self.light, self.seed = split, crop, light, seed
        self.forgiving = forgiving

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        shown, image = self.readable(epoch, index)
        state = torch.get_rng_state()  # without workers this is the training process's own
        torch.default_generator.manual_seed(seed_of(self.seed, "augment", epoch, index))
        try:
            label, unread = int(self.split.labels[shown]), -1 if shown == index else index
            return self.crop(image).contiguous(), label, lighting(self.light), unread
        finally:
            torch.set_rng_state(state)

    def readable(self, epoch: int, index: int) -> tuple[int, Tensor]:
        """Return the image of an index, or one drawn by (seed, epoch, index) in its place."""
        try:
            return index, read(self.split.path(index))
        except DataError:
            if not self.forgiving:
                raise
        draw = generator(self.seed, "replace", epoch, index)
        for other in torch.randint(len(self.split), (TRIES,), generator=draw).tolist():
            try:
                return other, read(self.split.path(other))
            except DataError:
                continue
        raise DataError(
            f"cannot read the image {self.split.path(index)} and {TRIES} others drawn in its "
            "place: is the disk of data.root still there?"
        )


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
    """Return the rank's keys of a split in batches; the ranks together name each image once."""
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

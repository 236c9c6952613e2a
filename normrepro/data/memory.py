"""Data sets small enough to live on the device as one tensor.

What `InMemory` knows is order, ranks and batches. How images are stored, augmented and scaled is
left to its two heirs: `Digits` (floats, augmented a whole epoch at once) and `ByteImages` (bytes,
augmented a batch at a time).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from normrepro.data.base import Batches, check_batches, epoch_order, eval_slice, rank_batches

Labelled = tuple[Tensor, Tensor]  # images (N, C, H, W) and labels (N,)


class InMemory:
    """Training and validation batches of one rank out of tensors on its device.

    Args:
        train: Training images and labels.
        val: Validation images and labels.
        classes: Number of classes.
        seed: The run's seed: order and augmentation.
        total: Images per optimizer step over all ranks.
        rank: This process.
        world: Number of processes.
        device: Where the images live.
        eval_batch: Images per batch of an evaluation.
    """

    skipped = 0  # what lies in memory can be read

    def __init__(
        self,
        train: Labelled,
        val: Labelled,
        classes: int,
        seed: int,
        total: int,
        rank: int,
        world: int,
        device: torch.device | str,
        eval_batch: int,
    ) -> None:
        (self.images, self.labels), (self.val_images, self.val_labels) = (
            (images.to(device), labels.to(device)) for images, labels in (train, val)
        )
        self.train_size, self.val_size = len(self.labels), len(self.val_labels)
        check_batches(total, rank, world, self.train_size)
        self.notes: list[str] = []
        self.classes, self.seed, self.total = classes, seed, total
        self.rank, self.world = rank, world
        self.shape = tuple(self.images.shape[1:])
        self.steps_per_epoch, self.eval_batch = self.train_size // total, eval_batch

    def shown(self, epoch: int) -> Callable[[Tensor], Tensor]:
        """Return what maps picks (B,) to the images (B, C, H, W) as the epoch shows them."""
        raise NotImplementedError

    def plain(self, images: Tensor) -> Tensor:
        """Scale stored images for the model, without augmentation."""
        raise NotImplementedError

    def train_batches(self, epoch: int, start: int = 0) -> Batches:
        """Yield this rank's slice of every full global batch of the epoch from step `start` on."""
        show = self.shown(epoch)
        order = epoch_order(self.train_size, self.seed, epoch).to(self.labels.device)
        for picks in rank_batches(order, self.total, self.rank, self.world, start):
            yield show(picks), self.labels[picks]

    def eval_batches(self) -> Batches:
        """Yield this rank's part of the validation set; the ranks together see each image once."""
        return self.judged(self.val_images, self.val_labels)

    def train_eval_batches(self) -> Batches:
        """Yield this rank's part of the training images, each once, as evaluation shows images."""
        return self.judged(self.images, self.labels)

    def judged(self, images: Tensor, labels: Tensor) -> Batches:
        """Yield this rank's part of a set of images, in order and without augmentation."""
        mine = eval_slice(len(images), self.rank, self.world)
        for first in range(mine.start, mine.stop, self.eval_batch):
            piece = slice(first, min(first + self.eval_batch, mine.stop))
            yield self.plain(images[piece]), labels[piece]


def stratified(labels: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Draw `count` indices in which every class keeps its share (largest remainders).

    Args:
        labels: Class of each candidate, (N,).
        count: How many indices to draw, at most N.
        draw: Source of randomness.

    Returns:
        Sorted indices into `labels`, (count,).
    """
    exact = labels.bincount().double() * count / len(labels)
    quota = exact.floor().long()
    fraction = exact - quota
    quota[fraction.argsort(descending=True, stable=True)[: count - int(quota.sum())]] += 1
    shuffled = torch.randperm(len(labels), generator=draw)
    picks = [shuffled[labels[shuffled] == c][:n] for c, n in enumerate(quota.tolist())]
    return torch.cat(picks).sort().values

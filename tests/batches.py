"""Helpers of the data tests: batches put together again."""

import torch


def joined(batches):
    """All batches of an iterator as two tensors."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def as_ranks(build, world, epoch):
    """The global batches of an epoch, put together again from every rank's slices."""
    ranks = [build(rank=rank, world=world).train_batches(epoch) for rank in range(world)]
    for pieces in zip(*ranks, strict=True):
        yield joined(pieces)

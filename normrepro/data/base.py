"""What every data source shares: seeds, order of an epoch, a rank's slice, checks.

Order and augmentation are functions of (seed, epoch, index of the image): never of the rank, the
number of workers or the batches before. Each rank computes the whole order and takes its slice, so
the world size changes nothing that a model sees.
"""

import hashlib
import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from normrepro.config import ConfigError

Batches = Iterator[tuple[Tensor, Tensor]]


class DataError(ConfigError):
    """Data that is missing, malformed or does not fit the config."""


class Source(Protocol):
    """The face of a data source that the engine and the tasks know."""

    classes: int
    shape: tuple[int, int, int]  # (C, H, W)
    train_size: int
    val_size: int
    steps_per_epoch: int
    skipped: int  # images of this rank's epoch that could not be read, and others shown instead
    notes: list[str]  # what a run's record should say of the data

    def train_batches(self, epoch: int, start: int = 0) -> Batches:
        """Yield this rank's slice of every full global batch of the epoch from step `start` on."""
        ...

    def eval_batches(self) -> Batches:
        """Yield this rank's part of the validation set; the ranks together see each image once."""
        ...

    def train_eval_batches(self) -> Batches:
        """Yield this rank's part of the training images, each once, as evaluation shows images."""
        ...


@contextmanager
def lost_workers_named() -> Iterator[None]:
    """Say what to do when the system killed a decoding process.

    torch raises from a signal handler, that is anywhere in the main process: the engine holds this
    around the whole training too.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        # Said once: torch's handler would raise again while the process ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise DataError(
            f"a decoding process died ({str(error).strip().rstrip('.')}): most often memory or "
            "shared memory ran out. Start the same command again and the run goes on from its last "
            "checkpoint; data.workers=<fewer> needs less memory"
        ) from error


def seed_of(*parts: int | str) -> int:
    """Hash integers and strings into a 63-bit seed, the same on every machine and Python."""
    text = json.dumps(parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `parts`: draws are the same whatever device trains."""
    return torch.Generator().manual_seed(seed_of(*parts))


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation (size,) in which epoch `epoch` shows the training images."""
    return torch.randperm(size, generator=generator(seed, "order", epoch))


def rank_batches(order: Tensor, total: int, rank: int, world: int, start: int = 0) -> list[Tensor]:
    """Cut an epoch into global batches, the incomplete last one dropped, and take a rank's slice.

    Args:
        order: Image indices of the epoch, (size,).
        total: Images per optimizer step over all ranks.
        rank: This process.
        world: Number of processes.
        start: First step to return.

    Returns:
        One index tensor (total / world,) per step: consecutive ranks hold consecutive images.
    """
    share = total // world
    steps = order[: len(order) // total * total].view(-1, total)
    return list(steps[start:, rank * share : (rank + 1) * share])


def eval_slice(size: int, rank: int, world: int) -> range:
    """Return the images that a rank evaluates: contiguous, disjoint, together all of them."""
    return range(size * rank // world, size * (rank + 1) // world)


def check_batches(total: int, rank: int, world: int, train_size: int) -> None:
    """Refuse batches that the data cannot fill or the ranks cannot share."""
    if total < 1 or total % world or not 0 <= rank < world:
        raise DataError(f"batch.total={total} cannot be shared by {world} processes (rank {rank})")
    if total > train_size:
        raise DataError(
            f"batch.total={total} is larger than the {train_size} training images: "
            f"no epoch has a full batch. Set batch.total to {train_size} or less"
        )


def augment_options(
    augment: str | Mapping[str, Any] | None,
    presets: Mapping[str, Mapping[str, Any]],
    data: str,
) -> dict[str, Any]:
    """Turn a preset's name or a mapping into the full set of augmentation options.

    Args:
        augment: Name of a preset, a mapping of options (what is absent is off), or None.
        presets: Options by name; `presets["none"]` lists every option at its "off" value.
        data: Name of the data source, for the message.
    """
    if augment is None or isinstance(augment, str):
        name = augment or "none"
        if name not in presets:
            known = ", ".join(sorted(presets))
            raise DataError(f"recipe.augment={name} is unknown to {data}: choose one of {known}")
        return {**presets["none"], **presets[name]}
    unknown = sorted(set(augment) - set(presets["none"]))
    if unknown:
        known = ", ".join(sorted(presets["none"]))
        raise DataError(
            f"recipe.augment.{unknown[0]} is unknown to {data}: its options are {known}; "
            f"or name a preset, recipe.augment=<{' | '.join(sorted(presets))}>"
        )
    return {**presets["none"], **augment}

"""The few things that several processes must do together; alone, each of them is nothing."""

import atexit
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normrepro.checks import ConfigError, DisagreementError
from normrepro.norms import Normalizer


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, as torchrun (or Slurm) started them."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Add a tensor over the processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Join (R, ...) of every process along the first axis, in rank order."""
        if self.world == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def any(self, *wishes: bool) -> tuple[bool, ...]:
        """Tell for each wish whether any process has it."""
        if self.world == 1:
            return wishes
        return tuple(self.sum(torch.tensor(wishes, dtype=torch.int32, device=self.device)).tolist())

    def share(self, value: Any) -> list[Any]:
        """Return every process's value, in rank order."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def first_of(self, text: str | None) -> str | None:
        """Return the text of the first process that has one."""
        return next(filter(None, self.share(text)), None)

    def agree(self, text: str, what: str) -> None:
        """Refuse to start where the processes differ in something that they must share.

        Raises:
            DisagreementError: On every process, with all the values.
        """
        texts = self.share(text)
        if len(set(texts)) > 1:
            raise DisagreementError(
                f"the processes differ in their {what}: {texts}; start them all alike"
            )


def join(device: str, timeout: float) -> Ranks:
    """Join the processes that torchrun started, once in the life of this one.

    Args:
        device: "auto", "cpu" or "cuda"; auto takes a GPU where there is one.
        timeout: Seconds that a collective waits for the others before the job ends with an error.

    Raises:
        ConfigError: A GPU is asked for and there is none.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device=cuda, but torch sees no GPU: set run.device=cpu")
    use_gpu = device != "cpu" and torch.cuda.is_available()
    here = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if use_gpu
        else torch.device("cpu")
    )
    if use_gpu:
        torch.cuda.set_device(here)
    if world > 1 and not dist.is_initialized():  # a sweep's jobs share the group of the first
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=timedelta(seconds=timeout))
        # Not on an error: then the process ends at once, and the others with it.
        atexit.register(dist.destroy_process_group)
    return Ranks(rank, world, here)


def wrap(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Average gradients over the processes; running state stays each process's own."""
    if ranks.world == 1:
        return model
    # torch 2.15 renamed the switch; with the old name it warns.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # Every process builds the same weights from the same seed, so nothing is to be sent at the
    # start either.
    return DistributedDataParallel(model, init_sync=False, **{switch: False})


@contextmanager
def evaluation_state(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Give every process the state that evaluation uses: device 0's, or the mean (`eval.state`)."""
    if ranks.world == 1:
        yield
        return
    saved = []
    for layer in (m for m in model.modules() if isinstance(m, Normalizer)):
        for name in (n for n in layer.replica_buffers if n.startswith("running_")):
            own = layer.state(name)
            saved.append((own, own.clone()))
            value = layer.eval_buffer(name).contiguous()
            own.copy_(_shared(value, layer.eval_state, ranks).expand_as(own))
    yield
    for own, value in saved:
        own.copy_(value)


def _shared(value: Tensor, how: str, ranks: Ranks) -> Tensor:
    value = value.clone()
    if how == "mean":
        dist.all_reduce(value)
        return value / ranks.world
    dist.broadcast(value, 0)
    return value

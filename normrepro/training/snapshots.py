"""What a run saves, when, and how it goes on from there; the files are `checkpoint.py`'s."""

import logging
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from normrepro.checks import SaveError
from normrepro.config import ConfigError, run_dir, run_name
from normrepro.data.base import Source
from normrepro.distributed import Ranks
from normrepro.norms import kernels
from normrepro.training import build, checkpoint

log = logging.getLogger("normrepro")
Row = dict[str, Any]


def kernels_serve(device: torch.device) -> bool:
    """Tell whether the compiled kernels do the arithmetic; torch's own differs in last bits."""
    return kernels.usable(torch.zeros(1, device=device))


@dataclass
class State:
    """How far a run has come: what a checkpoint holds beside weights and optimizer."""

    step: int = 0
    loss_sum: float = 0.0  # of the epoch under way
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)
    overflows: int = 0  # steps in a row that the loss scaler skipped
    skipped: int = 0  # training images of the epoch that could not be read, on all processes


class Kept(Protocol):
    """What is saved of a trainer."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    state: State
    steps: int
    channels_last: bool
    notes: list[str]

    @property
    def seconds(self) -> float:
        """Return the time spent on the run."""
        ...


class Snapshots:
    """Keeps a trainer in its run's directory."""

    def __init__(self, cfg: DictConfig, ranks: Ranks, data: Source) -> None:
        self.cfg, self.ranks, self.data = cfg, ranks, data
        self.folder, self.saved_at, self.failing = run_dir(cfg), time.monotonic(), False

    def due(self) -> bool:
        """Tell whether it is time for a checkpoint within an epoch."""
        return time.monotonic() - self.saved_at > self.cfg.run.save_every

    def due_after_epoch(self) -> bool:
        """Tell whether it is time for a checkpoint after an epoch, which may take milliseconds."""
        apart = min(self.cfg.run.save_every, self.cfg.run.save_apart)
        return time.monotonic() - self.saved_at > apart

    def save(self, trainer: Kept, last: bool = False) -> None:
        """Write a checkpoint; every process must call it.

        A disk that is full, or whatever else refuses the file, costs a warning: the checkpoint
        before stays, and the next one is tried in its time.

        Args:
            trainer: What to save.
            last: It is the run's last one.

        Raises:
            SaveError: The last one cannot be written.
        """
        self.saved_at = time.monotonic()
        weights = checkpoint.model_state(trainer.model, self.ranks)
        trainer.state.skipped = sum(self.ranks.share(self.data.skipped))
        if not self.ranks.first:
            return
        state = self.describe(trainer) | {"model": weights}
        try:
            checkpoint.save(self.folder, state, make_room=last)
        except OSError as error:
            if last:
                raise SaveError(
                    f"{self.folder}: the last checkpoint cannot be written ({error.strerror}); "
                    "make room, and the same command goes on from the one before"
                ) from error
            if not self.failing:
                log.warning(
                    "%s: no checkpoint can be written (%s); training goes on, and tries again",
                    *(run_name(self.cfg), error.strerror),
                )
            self.failing = True
        else:
            if self.failing:
                log.warning("%s: checkpoints can be written again", run_name(self.cfg))
            self.failing = False

    def describe(self, trainer: Kept) -> dict[str, Any]:
        """Return what a checkpoint holds beside the model's weights."""
        return {
            "run": run_name(self.cfg),
            "config": build.plain(self.cfg),
            "data": build.counts(self.data),
            "shape": list(self.data.shape),
            "threads": torch.get_num_threads(),
            "kernels": kernels_serve(self.ranks.device),
            "channels_last": trainer.channels_last,
            "progress": asdict(trainer.state) | {"seconds": trainer.seconds},
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict(),
        }

    def resume(self, trainer: Kept) -> None:
        """Go on from the newest readable checkpoint, if there is one.

        Raises:
            ConfigError: It was begun on other data, or the processes see different checkpoints.
        """
        state = checkpoint.latest(self.folder)
        step = state["progress"]["step"] if state else 0
        self.ranks.agree(f"step {step}", f"checkpoint in {self.folder}")
        if state is None:
            return
        if state["data"] != build.counts(self.data):
            raise ConfigError(
                f"{self.folder} was begun on data with {state['data']}, and "
                f"data.root={self.cfg.data.root} has {build.counts(self.data)}: "
                "point data.root to the same data, or set another run.root"
            )
        self._keep_surroundings(trainer, state)
        checkpoint.load_model_state(trainer.model, state["model"], self.ranks)
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scaler.load_state_dict(state["scaler"])
        trainer.state = State(**state["progress"])
        self.data.skipped = trainer.state.skipped if self.ranks.first else 0
        log.info("%s goes on at step %d of %d", run_name(self.cfg), step, trainer.steps)

    def _keep_surroundings(self, trainer: Kept, state: dict[str, Any]) -> None:
        """Take over what moves last bits: threads and memory format; say what cannot be kept."""
        if state["threads"] != torch.get_num_threads():
            torch.set_num_threads(state["threads"])
            trainer.notes.append(f"resumed with the {state['threads']} threads it was begun with")
        begun = state.get("channels_last", False)
        if begun != trainer.channels_last:
            trainer.channels_last = begun
            trainer.model.to(memory_format=build.memory_format(begun))
        if state["kernels"] != kernels_serve(self.ranks.device):
            trainer.notes.append("compiled kernels served a part of this run: last bits may differ")
            log.warning("%s: %s", run_name(self.cfg), trainer.notes[-1])

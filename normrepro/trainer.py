"""The loop: steps, evaluations, checkpoints. Nothing in here knows which normalizer trains."""

import contextlib
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from normrepro import build, checkpoint, norms, optim
from normrepro.config import ConfigError, run_dir, run_name
from normrepro.data.base import Source, seed_of
from normrepro.distributed import Ranks, evaluation_state, wrap
from normrepro.norms import kernels
from normrepro.progress import Progress
from normrepro.wandb_log import Mirror

log = logging.getLogger("normrepro")


class Diverged(RuntimeError):
    """The loss is not finite; the run ends here and is recorded as diverged."""


@dataclass
class State:
    """How far a run has come: what a checkpoint holds beside weights and optimizer."""

    step: int = 0
    loss_sum: float = 0.0  # of the epoch under way
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def kernels_serve(device: torch.device) -> bool:
    """Tell whether the compiled kernels do the arithmetic; torch's own differs in last bits."""
    return kernels.usable(torch.zeros(1, device=device))


class Trainer:
    """The loop and what it works on."""

    def __init__(
        self,
        cfg: DictConfig,
        ranks: Ranks,
        data: Source,
        model: nn.Module,
        task: Any,
        optimizer: Optimizer,
        steps: int,
    ) -> None:
        self.cfg, self.ranks, self.data, self.task = cfg, ranks, data, task
        self.model, self.optimizer, self.steps = model, optimizer, steps
        self.net = wrap(torch.compile(model) if cfg.run.compile else model, ranks)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=cfg.precision == "float16")
        self.folder, self.state, self.notes = run_dir(cfg), State(), list[str]()
        self.saved_at = time.monotonic()

    # -- training ----------------------------------------------------------------------------------

    def fit(self, mirror: Mirror, bar: Progress, started: float) -> None:
        """Train to the last step; each epoch ends with an evaluation and a checkpoint."""
        per_epoch, before = self.data.steps_per_epoch, self.state.seconds
        bar.start(self.state.step)
        while self.state.step < self.steps:
            epoch, first = divmod(self.state.step, per_epoch)
            clock = time.monotonic()
            for x, y in self.data.train_batches(epoch, first):
                self.state.loss_sum += self.step(x, y)
                self.state.step += 1
                bar.update(self.state.step, self.cfg.batch.total, epoch + 1)
                self.state.seconds = before + time.monotonic() - started
                if self.state.step == self.steps:
                    break
                if (
                    time.monotonic() - self.saved_at > self.cfg.run.save_every
                    and self.state.step % per_epoch
                ):
                    self.save()
            done = self.state.step - epoch * per_epoch
            rate = (done - first) * self.cfg.batch.total / (time.monotonic() - clock)
            row = {
                "epoch": epoch + 1,
                "step": self.state.step,
                "lr": self.optimizer.param_groups[0]["lr"],
            }
            row |= {"train_loss": self.state.loss_sum / done, **self.evaluate()}
            self.state.seconds = before + time.monotonic() - started
            row |= {"images_per_second": rate, "seconds": self.state.seconds}
            self.state.history.append(row)
            self.state.loss_sum = 0.0
            self.save()
            mirror.log(row)

    def step(self, x: Tensor, y: Tensor) -> float:
        """Take one optimizer step; returns the mean loss over all processes' images.

        Raises:
            Diverged: That loss is not finite.
        """
        cfg, scaler = self.cfg, self.scaler
        torch.manual_seed(seed_of(cfg.seed, "step", self.state.step, self.ranks.rank))  # dropout
        factor = optim.lr_factor(
            self.state.step, self.steps, cfg.recipe.schedule, cfg.recipe.warmup
        )
        optim.set_lr(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        # Each process takes the mean over its own images: `world` times its part of the objective.
        with norms.step(self.model, scale=scaler.get_scale() * self.ranks.world) as s:
            with self.autocast():
                loss = self.task.loss(self.net, self.shape(x), y)
            value = float(self.ranks.sum(loss.detach().double())) / self.ranks.world
            if not math.isfinite(value):
                raise Diverged(f"the loss is {value} at step {self.state.step + 1}")
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            before = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() < before:  # gradients overflowed: the optimizer skipped the step
                s.skip()
        return value

    def shape(self, x: Tensor) -> Tensor:
        """Give a batch of images the precision and memory format of the run."""
        memory = torch.channels_last if self.cfg.run.channels_last else torch.preserve_format
        return x.to(
            torch.float64 if self.cfg.precision == "float64" else x.dtype, memory_format=memory
        )

    def autocast(self) -> contextlib.AbstractContextManager:
        """Compute in half precision where the run says so."""
        half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.cfg.precision)
        if half is None:
            return contextlib.nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=half)

    def evaluate(self) -> dict[str, float]:
        """Judge the model on the validation set, each image once over all processes."""
        with evaluation_state(self.model, self.ranks), self.autocast():
            sums = self.task.evaluate(
                self.model, ((self.shape(x), y) for x, y in self.data.eval_batches())
            )
        return self.task.metrics({k: self.ranks.sum(v) for k, v in sums.items()})

    # -- memory ------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint."""
        self.saved_at = time.monotonic()
        weights = checkpoint.model_state(self.model, self.ranks)
        if self.ranks.first:
            state = {
                "run": run_name(self.cfg),
                "config": build.plain(self.cfg),
                "data": build.counts(self.data),
                "shape": list(self.data.shape),
                "threads": self.cfg.run.threads,
                "kernels": kernels_serve(self.ranks.device),
                "progress": asdict(self.state),
                "model": weights,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            checkpoint.save(self.folder, state)

    def resume(self) -> None:
        """Go on from the newest readable checkpoint, if there is one."""
        state = checkpoint.latest(self.folder)
        if state is None:
            return
        if state["data"] != build.counts(self.data):
            raise ConfigError(
                f"{self.folder} was begun on data with {state['data']}, and "
                f"data.root={self.cfg.data.root} has {build.counts(self.data)}: "
                "point data.root to the same data, or set another run.root"
            )
        if state["threads"] != self.cfg.run.threads:
            torch.set_num_threads(state["threads"])
            self.notes.append(f"resumed with the {state['threads']} threads it was begun with")
        if state["kernels"] != kernels_serve(self.ranks.device):
            self.notes.append("compiled kernels served a part of this run: last bits may differ")
            log.warning("%s: %s", run_name(self.cfg), self.notes[-1])
        checkpoint.load_model_state(self.model, state["model"], self.ranks)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.state = State(**state["progress"])
        log.info("%s goes on at step %d of %d", run_name(self.cfg), self.state.step, self.steps)

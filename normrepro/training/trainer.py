"""The loop: steps, evaluations, checkpoints. Nothing in here knows which normalizer trains."""

import math
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from normrepro import norms
from normrepro.data.base import Batches, Source
from normrepro.distributed import Ranks, wrap
from normrepro.training import build, finite, optim, precision
from normrepro.training.finite import Diverged
from normrepro.training.interrupt import Interrupted, Interrupts
from normrepro.training.judge import Judge
from normrepro.training.progress import Progress
from normrepro.training.pulse import Beat, Pulse
from normrepro.training.snapshots import Row, Snapshots, State
from normrepro.training.wandb_log import Mirror


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
        self.channels_last = build.channels_last(cfg, ranks.device)
        self.chance = build.chance(cfg, model, data.classes, ranks)
        self.net = wrap(torch.compile(model) if cfg.run.compile else model, ranks)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=cfg.precision == "float16")
        self.state, self.notes = State(), list[str]()
        self.snapshots, self.pulse = Snapshots(cfg, ranks, data), Pulse(ranks)
        self.interrupts, self.begun = Interrupts(), time.monotonic()
        self.judge = Judge(model, data, task, ranks, self.shape, self.autocast, self.judged)

    def fit(self, mirror: Mirror, bar: Progress) -> None:
        """Train to the last step; each epoch ends with an evaluation and a row of history.

        Raises:
            Diverged: A loss, a statistic or a weight is not finite.
            Interrupted: Ctrl-C or SIGTERM; what is done is saved.
            SaveError: The last checkpoint cannot be written.
        """
        bar.start(self.state.step)
        epochs = math.ceil(self.steps / self.data.steps_per_epoch)
        with self.interrupts:
            for epoch in range(len(self.state.history), epochs):
                self.epoch(epoch, mirror, bar)
                if epoch + 1 < epochs:
                    self.between_epochs()
        self.snapshots.save(self, last=True)

    def epoch(self, epoch: int, mirror: Mirror, bar: Progress) -> None:
        """Train what is left of an epoch, and add its row to the history."""
        clock, first = time.monotonic(), self.state.step
        self.train_epoch(epoch, bar)
        trained = (self.state.step - first) * self.cfg.batch.total
        rate = trained / (time.monotonic() - clock) if trained else None
        row = self.row(epoch) | {"images_per_second": rate, "seconds": self.seconds}
        self.state.history.append(row)
        self.state.loss_sum = 0.0
        mirror.log(row)

    def train_epoch(self, epoch: int, bar: Progress) -> None:
        """Take the steps of an epoch that are left."""
        per_epoch = self.data.steps_per_epoch
        end, first = min(self.steps, (epoch + 1) * per_epoch), self.state.step - epoch * per_epoch
        left = self.state.step < end  # else the run ended here before it was judged
        for x, y in self.data.train_batches(epoch, first) if left else ():
            beat = self.step(x, y)
            self.state.step += 1
            self.state.loss_sum += beat.loss
            bar.update(self.state.step, self.cfg.batch.total, epoch + 1)
            if beat.stop:
                self.end_early()
            if self.state.step == end:
                break
            if beat.save:
                self.snapshots.save(self)

    def between_epochs(self) -> None:
        """Save if it is time to, and end here if somebody asked for it meanwhile."""
        stop, save = self.ranks.any(self.interrupts.asked, self.snapshots.due_after_epoch())
        if stop:
            self.end_early()
        if save:
            self.snapshots.save(self)

    def end_early(self) -> None:
        """Save, and leave the loop on every process at once."""
        self.snapshots.save(self)
        self.ranks.any(True)  # nobody leaves before the checkpoint is written
        raise Interrupted(f"saved at step {self.state.step} of {self.steps}")

    def step(self, x: Tensor, y: Tensor) -> Beat:
        """Take one optimizer step.

        Raises:
            Diverged: Its loss, or a statistic that the step before left, is not finite; or the loss
                scaler has skipped too many steps in a row. Nothing has moved.
        """
        factor = optim.lr_factor(
            self.state.step, self.steps, self.cfg.recipe.schedule, self.cfg.recipe.warmup
        )
        optim.set_lr(self.optimizer, factor)
        try:
            return self.update(x, y)
        except Diverged as error:
            error.layer = self.locate(x, y)
            raise

    def update(self, x: Tensor, y: Tensor) -> Beat:
        """Move weights and running state by one batch."""
        scaler = self.scaler
        self.optimizer.zero_grad(set_to_none=True)
        # Each process takes the mean over its own images: `world` times its part of the objective.
        with norms.step(self.model, scale=scaler.get_scale() * self.ranks.world) as s:
            loss = self.loss(self.net, x, y)
            self.pulse.send(
                loss,
                finite.statistics(self.model),
                self.interrupts.asked,
                self.ranks.first and self.snapshots.due(),
            )
            scaler.scale(loss).backward()
            beat = self.pulse.receive()
            finite.require(beat.loss, beat.largest, self.state.step)
            scaler.step(self.optimizer)
            before = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() < before:  # gradients overflowed: the optimizer skipped the step
                s.skip()
                self.state.overflows += 1
                finite.require_progress(self.state.overflows, self.cfg.overflows, self.state.step)
            else:
                self.state.overflows = 0
        return beat

    def loss(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return this process's mean loss () of a batch."""
        x, y = self.chance.prepare(self.state.step, x, y)
        with self.autocast():
            return self.task.loss(net, self.shape(x), y)

    def shape(self, x: Tensor) -> Tensor:
        """Give a batch of images the precision and memory format of the run."""
        return precision.shaped(x, self.cfg.precision, self.channels_last)

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in half precision where the run says so."""
        return precision.autocast(self.cfg.precision, self.ranks.device)

    def locate(self, x: Tensor, y: Tensor) -> str | None:
        """Name the first layer that is not finite, on any process, by a step that moves nothing."""
        with norms.step(self.model, scale=self.scaler.get_scale() * self.ranks.world) as s:
            s.skip()
            layer = finite.locate(
                self.model, lambda: self.scaler.scale(self.loss(self.model, x, y))
            )
        return self.ranks.first_of(layer)

    @property
    def seconds(self) -> float:
        """Return the time spent on the run, over all its starts."""
        return self.state.seconds + time.monotonic() - self.begun

    def row(self, epoch: int) -> Row:
        """Judge the model after an epoch; returns the epoch's row of history."""
        finite.require_state(self.ranks.first_of(finite.broken(self.model)), self.state.step)
        done = self.state.step - epoch * self.data.steps_per_epoch
        where = {"epoch": epoch + 1, "step": self.state.step}
        skipped = sum(self.ranks.share(self.data.skipped))
        if skipped:
            where["skipped_images"] = skipped
        return where | {
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self.state.loss_sum / done,
            **self.judge.epoch(epoch, self.state.step == self.steps),
        }

    def judged(self) -> Batches:
        """Yield the validation batches; a single process may be interrupted between two."""
        for x, y in self.data.eval_batches():
            if self.interrupts.asked and self.ranks.world == 1:
                self.end_early()
            yield self.shape(x), y

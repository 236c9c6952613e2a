"""One run, from its config to its record. Read `run` first; the loop itself is in `trainer.py`."""

import logging
import math
import os
import time
from typing import Any

import torch
from omegaconf import DictConfig

from normrepro import record
from normrepro.checks import SaveError
from normrepro.config import run_dir, run_name
from normrepro.data.base import lost_workers_named, seed_of
from normrepro.diagnostics import Watch, layer_names
from normrepro.distributed import join
from normrepro.training import build, checkpoint, optim, trained
from normrepro.training.finite import Diverged
from normrepro.training.progress import Progress
from normrepro.training.snapshots import kernels_serve
from normrepro.training.trainer import Trainer
from normrepro.training.wandb_log import Mirror

log = logging.getLogger("normrepro")


def run(cfg: DictConfig) -> float:
    """Train what the config says, or go on where it stopped; return the error in percent.

    What the run leaves is `result.json` and `last.pt` in its directory.

    Raises:
        ConfigError: The config, the data or an earlier checkpoint do not fit together.
        Interrupted: Ctrl-C or SIGTERM; the same command goes on.
        SaveError: The disk takes what the run ends with no more.
    """
    if cfg.run.eval is not None:
        return trained.evaluate(cfg)
    started = time.monotonic()
    prepare(cfg)
    ranks = join(cfg.run.device, cfg.run.timeout)
    ranks.agree(run_name(cfg), "config")
    data = build.data(cfg, ranks)
    steps = build.length(cfg, data.steps_per_epoch)
    model = build.model(cfg, data.classes, data.shape, ranks, steps)
    task = build.instantiate(cfg.task.build)
    optimizer = optim.build(model, build.instantiate(cfg.recipe.optimizer), cfg.recipe.decay_norms)
    trainer = Trainer(cfg, ranks, data, model, task, optimizer, steps)
    trainer.judge.watch = Watch(build.listed(cfg, "diagnostics"))
    trainer.judge.evaluations = build.listed(cfg, "evaluations")
    trainer.begun = started
    trainer.snapshots.resume(trainer)
    with Mirror(cfg, ranks, trainer.state.history) as mirror, Progress(ranks, steps) as bar:
        with lost_workers_named():
            outcome = train(trainer, mirror, bar)
        result = make_record(trainer, outcome)
        if ranks.first:
            write(cfg, result)
        mirror.finish(result)
    return float(result["metrics"].get("error", math.nan))


def train(trainer: Trainer, mirror: Mirror, bar: Progress) -> dict[str, Any]:
    """Train to the end, good or bad; returns what the record says of it."""
    try:
        trainer.fit(mirror, bar)
    except Diverged as error:
        log.warning("%s: %s", run_name(trainer.cfg), error)
        epoch = (error.step - 1) // trainer.data.steps_per_epoch + 1
        said = {"step": error.step, "epoch": epoch, "layer": error.layer, "reason": error.reason}
        return {"status": "diverged", "diverged": said}
    return {"status": "finished", "metrics": trainer.judge.further(trainer.steps)}


def write(cfg: DictConfig, result: dict[str, Any]) -> None:
    """Write the record into the run's directory.

    Raises:
        SaveError: It cannot be written; `last.pt` is whole, so that nothing is to be trained again.
    """
    path = run_dir(cfg) / "result.json"
    try:
        record.write_json(path, result)
    except OSError as error:
        raise SaveError(
            f"{path} cannot be written ({error.strerror}): make room, and the same command writes "
            "it from the last checkpoint"
        ) from error
    checkpoint.finish(run_dir(cfg))


def prepare(cfg: DictConfig) -> None:
    """Set everything global that a number depends on, anew for every run of a sweep."""
    torch.set_num_threads(cfg.run.threads)
    torch.set_default_dtype(torch.float32)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if cfg.run.compile:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:  # the same, without a second and a half of the compiler's imports
        torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed_of(cfg.seed, "start"))


def make_record(trainer: Trainer, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the run's record (normrepro/record.py describes it)."""
    history = trainer.state.history
    unpaired = trainer.model.conversion.unpaired
    if unpaired:
        trainer.notes.append(f"norms without a convolution of their own: {', '.join(unpaired)}")
    return {
        "run": run_name(trainer.cfg),
        **outcome,
        "scale": trainer.cfg.scale.name,
        "config": build.told(trainer.cfg),
        "metrics": summary(history) | outcome.get("metrics", {}),
        "history": history,
        **({"layers": layer_names(trainer.model)} if trainer.judge.watch.diagnostics else {}),
        "data": build.counts(trainer.data),
        "environment": record.environment()
        | {
            "world": trainer.ranks.world,
            "threads": torch.get_num_threads(),
            "kernels": kernels_serve(trainer.ranks.device),
            "channels_last": trainer.channels_last,
        },
        "seconds": trainer.seconds,
        "notes": trainer.notes + data_notes(trainer.data.notes, history),
    }


def data_notes(notes: list[str], history: list[dict[str, Any]]) -> list[str]:
    """Return what is to be said of the data: what they know themselves, and what was unreadable."""
    worst = max((row.get("skipped_images", 0) for row in history), default=0)
    if worst:
        return [
            *notes,
            f"up to {worst} training image(s) an epoch could not be read; others stood in",
        ]
    return notes


def summary(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the last epoch's values, and the best errors of all epochs."""
    keys = ("error", "loss", "train_loss", "top5_error")
    metrics = {k: history[-1][k] for k in keys if history and k in history[-1]}
    errors = [key for key in ("error", "top5_error") if key in metrics]
    return metrics | {f"best_{key}": min(row[key] for row in history) for key in errors}

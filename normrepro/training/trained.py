"""Open what a run left: the trained model, or its evaluation once more."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from normrepro.config import ConfigError
from normrepro.distributed import Ranks, join
from normrepro.training import build, checkpoint
from normrepro.trust import vetted

log = logging.getLogger("normrepro")


def find(run: str | Path, root: str | Path = "runs") -> Path:
    """Return the checkpoint that a run's name, its directory or a checkpoint's path stands for.

    Raises:
        ConfigError: There is none; the message has the places that were looked at.
    """
    places = [Path(run), Path(run) / "last.pt", Path(root) / run / "last.pt"]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"run.eval={run}: no checkpoint at {', '.join(map(str, places))}")


def load(run: str | Path, root: str | Path = "runs", trust: Sequence[str] = ()) -> nn.Module:
    """Return the trained model of a run, in evaluation mode, on the CPU.

    Args:
        run: The run's name, its directory, or the path of a checkpoint.
        root: Where runs live, for a name.
        trust: Packages of your own whose classes its config may name; see `trust.py`.

    Raises:
        ConfigError: There is no checkpoint, or its config names what it may not.
        ValueError: It is damaged.
    """
    state = checkpoint.read(find(run, root))
    model, _ = _restore(state, Ranks(0, 1, torch.device("cpu")), trust)
    return model.eval()


def evaluate(cfg: DictConfig) -> float:
    """Evaluate the run or checkpoint that `run.eval` names, on its own validation set; returns the
    error in percent.

    The run's own config counts; of `cfg` only where the data lies, the device and `eval.state`.
    """
    ranks = join(cfg.run.device, cfg.run.timeout)
    state = checkpoint.read(find(cfg.run.eval, cfg.run.root))
    mine = {"run": cfg.run, "eval": cfg.eval, "data": _place(cfg)}
    model, own = _restore(state, ranks, cfg.run.trust, mine)
    data = build.data(own, ranks)
    if build.counts(data) != state["data"]:
        log.warning("trained on data with %s, evaluated on %s", state["data"], build.counts(data))
    task = build.instantiate(own.task.build)
    dtype = next(model.parameters()).dtype
    sums = task.evaluate(model, ((x.to(dtype), y) for x, y in data.eval_batches()))
    metrics = task.metrics({k: ranks.sum(v) for k, v in sums.items()})
    log.info("%s: error %.4f %%, loss %.6f", state["run"], metrics["error"], metrics["loss"])
    return float(metrics["error"])


def _place(cfg: DictConfig) -> dict[str, Any]:
    return {k: cfg.data[k] for k in ("root", "workers") if cfg.data.get(k) is not None}


def _restore(
    state: dict[str, Any],
    ranks: Ranks,
    trust: Sequence[str] = (),
    more: dict[str, Any] | None = None,
) -> tuple[nn.Module, DictConfig]:
    """Build the model of a checkpoint with all its devices' replicas on this process."""
    cfg = OmegaConf.merge(OmegaConf.create(vetted(state["config"], trust)), more or {})
    whole = Ranks(0, 1, ranks.device)
    steps = state["progress"]["step"]
    model = build.model(cfg, state["data"]["classes"], tuple(state["shape"]), whole, steps)
    checkpoint.load_model_state(model, state["model"], whole)
    return model, cfg

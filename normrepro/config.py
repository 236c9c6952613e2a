"""From overrides to a run: composing its config, checking it, and the name that is its identity.

Nothing here imports torch: the report composes hundreds of cells, and a typo is refused at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normrepro.checks import ConfigError, check
from normrepro.hints import CONFIG_DIR, compose_raw, verify

__all__ = [
    "CONFIG_DIR",
    "ConfigError",
    "check",
    "compose",
    "counts_are_known",
    "identity",
    "rank",
    "register_resolvers",
    "run_dir",
    "run_name",
    "world_size",
]

# What cannot change a number: where a run lives and how it is watched, where its data lies, and
# what is only declared (the counts to compare with, the data that a scale fits, its sentence).
OUTSIDE = (
    "hydra",
    "run",
    "data.root",
    "data.workers",
    "data.download",
    "data.expect",
    "scale.data",
    "scale.sentence",
)
BATCH_ONLY = ("batch.norm", "batch.devices")  # of no effect on a norm that never looks across


def rank() -> int:
    """Return this process's rank, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes that train together, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def register_resolvers() -> None:
    """Register the resolvers that the YAML files use; calling it again does no harm.

    A number that is null counts as 0, so that `check` can name it.
    """
    resolvers = {
        "scaled_lr": lambda lr, per, total: float(lr) * float(total or 0) / float(per),
        "product": lambda *factors: math.prod(factor or 0 for factor in factors),
        "share": _share,
        "run_name": lambda *, _root_: run_name(_root_),
        "run_dir": lambda *, _root_: str(run_dir(_root_)),
        "rank_zero": lambda zero, other: zero if rank() == 0 else other,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _share(total: int, parts: int) -> int:
    """Return each part's share; what does not come out even is left to `check`, which explains."""
    return total // parts if isinstance(parts, int) and parts > 0 else total


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the config of one run.

    Args:
        overrides: As on the command line: `["norm=mabn", "batch.norm=4"]`.

    Returns:
        The config, without the hydra node.

    Raises:
        ConfigError: On an unknown key or choice or a value of the wrong type, with a hint.
    """
    register_resolvers()
    verify(overrides)
    cfg = compose_raw(tuple(overrides))
    try:
        identity(cfg)  # resolves all that the run depends on
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config cannot be resolved: {error}") from error
    return cfg


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return all of a config that can change a number, resolved.

    Outside are `run`, `hydra` and where the data lies, and for a norm that never looks across the
    batch also the two numbers that only such norms read. Nulls are dropped, so that a new option
    does not orphan old runs, and a `_target_` enters by its class name, so that a module may move.

    Args:
        cfg: A composed config, with or without the hydra node.
    """
    outside = set(OUTSIDE)
    if not cfg.norm.across_batch:
        outside.update(BATCH_ONLY)
        if cfg.recipe.get("mixup") is not None:  # partners are of the same device
            outside.discard("batch.devices")
    if not counts_are_known(cfg):  # then nothing but its folder tells this data from other data
        outside.discard("data.root")
    plain = {key: _plain(cfg, key) for key in cfg if key not in outside}
    return _strip(plain, outside, "")


def counts_are_known(cfg: DictConfig) -> bool:
    """Tell whether the data set has known counts, so that its folder says nothing of it."""
    expect = cfg.data.get("expect") or {}
    return expect.get("classes") is not None


def _plain(cfg: DictConfig, key: Any) -> Any:
    """One top-level entry as plain Python; what is missing stays "???"."""
    if OmegaConf.is_missing(cfg, key):
        return "???"
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _strip(node: Any, outside: Iterable[str], path: str) -> Any:
    """Drop what is outside or says nothing, and write every value in its one canonical way."""
    if isinstance(node, dict):
        items = {}
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if here not in outside:
                items[str(key)] = _strip(value, outside, here)
        return {key: value for key, value in items.items() if value is not None and value != {}}
    if isinstance(node, list):
        return [_strip(value, outside, path) for value in node]
    if isinstance(node, str) and path.endswith("_target_"):
        return node.rpartition(".")[2]
    if isinstance(node, float) and node.is_integer():
        return int(node)  # 1.0 and 1 are one number
    return node


def run_name(cfg: DictConfig) -> str:
    """Return a run's name: for a person in front, the hash of its identity at the end.

    For example `digits-resnet_digits-mabn-n2-proxy-s0-1a2b3c4d5e`.

    Args:
        cfg: A composed config, with or without the hydra node.
    """
    body = json.dumps(identity(cfg), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(body.encode()).hexdigest()[:10]
    keys = {"data.name": "", "model.name": "", "norm.name": "", "batch.norm": "n"}
    keys |= {"scale.name": "", "seed": "s"}
    if not cfg.norm.across_batch:
        del keys["batch.norm"]
    words = [f"{letter}{OmegaConf.select(cfg, key)}" for key, letter in keys.items()]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word) for word in [*words, digest])


def run_dir(cfg: DictConfig) -> Path:
    """Return the directory of a run.

    Args:
        cfg: A composed config, with or without the hydra node.
    """
    return Path(cfg.run.root) / run_name(cfg)

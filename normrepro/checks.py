"""Every invariant of a run's config, in one place, each with the override that mends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

PRECISIONS = ("float32", "float64", "bfloat16", "float16")
CHOICES = {
    "precision": PRECISIONS,
    "eval.state": ("first", "mean"),
    "run.device": ("auto", "cpu", "cuda"),
    "run.lock": ("flock", "lease"),
    "run.channels_last": ("auto", True, False),
    "run.wandb": ("auto", "online", "offline", "disabled"),
    "recipe.schedule.name": ("step", "cosine"),
    "recipe.init": ("default", "kaiming_fan_out", "kaiming_fan_in"),
}


class ConfigError(ValueError):
    """What a person asked for cannot be run; the message names the override that mends it."""


class DisagreementError(ConfigError):
    """The processes of a job differ; every one of them knows it, and the first says so."""


class SaveError(RuntimeError):
    """What a run ends with cannot be written; the message says what to mend."""


def check(cfg: DictConfig, world: int = 1) -> None:
    """Check a composed config before any work starts.

    Args:
        cfg: The composed config.
        world: The number of processes that train together.

    Raises:
        ConfigError: On the first invariant that does not hold.
    """
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value} is none of {', '.join(map(str, allowed))}")
    if not isinstance(cfg.run.root, str) or not cfg.run.root:
        raise ConfigError(f"run.root={cfg.run.root} must be the path of a folder")
    for key in ("batch.devices", "batch.norm", "batch.total", "run.threads", "run.timeout"):
        _require_integer(cfg, key, at_least=1)
    _require_integer(cfg, "seed", at_least=0)
    if cfg.overflows is not None:
        _require_integer(cfg, "overflows", at_least=1)
    _check_batch(cfg.batch.total, cfg.batch.devices, world)
    if cfg.norm.across_batch:
        _check_norm(cfg, world)
    _check_length(cfg)
    _check_recipe(cfg.recipe)
    _check_scale(cfg)


def _require_integer(cfg: DictConfig, key: str, at_least: int) -> None:
    value = OmegaConf.select(cfg, key)  # None where it is missing
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{key}={value} must be an integer of at least {at_least}")


def _check_batch(total: int, devices: int, world: int) -> None:
    """Images to devices, devices to processes: both must come out even."""
    if total % devices:
        raise ConfigError(
            f"batch.devices={devices} does not divide the step's {total} images: "
            f"change batch.devices or batch.total"
        )
    if devices % world:
        raise ConfigError(
            f"{world} processes cannot share batch.devices={devices} evenly: start a number of "
            f"processes that divides it, or change batch.devices"
        )


def _check_norm(cfg: DictConfig, world: int) -> None:
    """A normalization batch is a part of a device's share or spans whole devices."""
    total, devices, norm = cfg.batch.total, cfg.batch.devices, cfg.batch.norm
    share = total // devices
    if norm <= share:
        if share % norm:
            raise ConfigError(
                f"batch.norm={norm} does not divide the {share} images per device "
                f"(batch.total={total} / batch.devices={devices})"
            )
        return
    if layer_name(cfg) != "BatchNorm":
        raise ConfigError(
            f"batch.norm={norm} is more than the {share} images per device, and only norm=bn can "
            f"join devices: lower batch.norm to {share} or less"
        )
    joined = norm // share
    if norm % share or devices % joined:
        raise ConfigError(
            f"batch.norm={norm} must join whole devices, in a number that divides "
            f"batch.devices={devices}: make it a multiple of the {share} images per device"
        )
    local = devices // world
    if local % joined and joined % local:
        raise ConfigError(
            f"batch.norm={norm} joins {joined} devices, which straddles the {local} devices of "
            f"a process: start another number of processes, or change batch.norm"
        )


def layer_name(cfg: DictConfig) -> str:
    """Return the class name of the normalizer."""
    return str(cfg.norm.layer._target_).rpartition(".")[2]


def _check_length(cfg: DictConfig) -> None:
    """A run is so many epochs or so many steps, one of the two."""
    given = [key for key in ("epochs", "steps") if cfg.recipe.get(key) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"recipe.epochs={cfg.recipe.get('epochs')} and recipe.steps={cfg.recipe.get('steps')}: "
            f"set exactly one of them, and the other to null"
        )
    _require_integer(cfg, f"recipe.{given[0]}", at_least=1)
    if cfg.scale.max_steps is not None:
        _require_integer(cfg, "scale.max_steps", at_least=1)


def _check_recipe(recipe: DictConfig) -> None:
    for key in ("warmup", "label_smoothing"):
        _require_fraction(f"recipe.{key}", recipe.get(key, 0.0), low=0.0)
    if recipe.get("mixup") is not None:
        _require_positive("recipe.mixup", recipe, "; null switches mixup off")
    schedule = recipe.schedule
    if schedule.name == "step":
        at = list(schedule.at)
        for fraction in at:
            _require_fraction("recipe.schedule.at", fraction, low=0.0)
        if at != sorted(at):
            raise ConfigError(f"recipe.schedule.at={at} must rise: fractions of the run, in order")
    _require_positive("recipe.optimizer.lr", recipe.optimizer)


def _require_fraction(key: str, value: Any, low: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < 1:
        raise ConfigError(f"{key}={value} must be a number from {low:g} to below 1")


def _require_positive(key: str, section: Mapping[str, Any], hint: str = "") -> None:
    value = section.get(key.rpartition(".")[2])
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{key}={value} must be a number above 0{hint}")


def _check_scale(cfg: DictConfig) -> None:
    """`scale=proxy` stands for digits: on ImageNet it would put a wrong number in a table."""
    fits = cfg.scale.data
    if not (fits is None or (OmegaConf.is_list(fits) and all(isinstance(f, str) for f in fits))):
        raise ConfigError(f"scale.data={fits} must be a list of data sets, or null for any")
    if fits is not None and cfg.data.name not in fits:
        raise ConfigError(
            f"scale={cfg.scale.name} does not fit data={cfg.data.name}: it fits "
            f"data={' or data='.join(fits)}; scale=custom fits any data"
        )

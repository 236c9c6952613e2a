"""Overrides, looked at before Hydra does: what is misspelt gets a hint instead of a stack trace."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from normrepro.checks import ConfigError

_HERE = Path(__file__).resolve().parent
# A wheel carries the configs inside the package, the repository beside it.
CONFIG_DIR = next(d for d in (_HERE / "configs", _HERE.parent / "configs") if d.is_dir())
FREE = ("recipe.augment",)  # a name or a mapping of strengths, as the data set understands it


@lru_cache(maxsize=1)
def groups() -> dict[str, tuple[str, ...]]:
    """Return every config group with its choices, as the folders have them."""
    folders = sorted(d for d in CONFIG_DIR.iterdir() if d.is_dir() and d.name != "hydra")
    return {d.name: tuple(sorted(f.stem for f in d.glob("*.yaml"))) for d in folders}


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides, one by one, so that the message names the one that is wrong."""
    return [override for text in overrides for override in _parsed(text)]


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Override, ...]:
    """Parse one override; tables ask for the same few again and again."""
    if "=" not in text and not text.startswith("~"):
        owners = [name for name, choices in groups().items() if text in choices]
        hint = did_you_mean(f"{name}={text}" for name in owners)
        raise ConfigError(f"'{text}' is not of the form key=value{hint}")
    if not text.partition("=")[0].strip("~+ "):
        raise ConfigError(f"'{text}' names no key")
    try:
        return tuple(OverridesParser.create().parse_overrides([text]))
    except HydraException as error:
        raise ConfigError(f"'{text}' cannot be read: {str(error).splitlines()[0]}") from error


def verify(overrides: Sequence[str]) -> None:
    """Refuse overrides with an unknown key, an unknown choice or a value of the wrong type.

    Args:
        overrides: Overrides of one run, without sweeps.

    Raises:
        ConfigError: Naming the override, and the one that was probably meant.
    """
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} asks for several runs: add -m for a sweep")
        if override.key_or_group in groups() and override.type is not OverrideType.DEL:
            _verify_choice(override)
    chosen = [o.input_line for o in parsed if _is_group(o.key_or_group)]
    base = compose_raw(tuple(chosen))
    for override in parsed:
        if override.type is OverrideType.CHANGE and _is_own_key(override.key_or_group):
            _verify_key(override, base)


def _is_group(key: str) -> bool:
    return key in groups() or "/" in key


def _is_own_key(key: str) -> bool:
    return not _is_group(key) and not key.startswith("hydra.")


def _verify_choice(override: Override) -> None:
    group, value = override.key_or_group, override.value()
    choices = groups()[group]
    if value not in choices:
        hint = did_you_mean(f"{group}={c}" for c in closest(str(value), choices))
        raise ConfigError(f"{group}={value} does not exist{hint} (there are {', '.join(choices)})")


def _verify_key(override: Override, base: DictConfig) -> None:
    key, value = override.key_or_group, override.value()
    tree = OmegaConf.to_container(base, resolve=False)
    known = dict(_walk(tree))
    if key not in known:
        written = override.input_line.partition("=")[2]
        hint = did_you_mean(_alternatives(key, written, list(known)))
        raise ConfigError(
            f"{key} is no key of this config{hint} (to add it on purpose: +{key}=...)"
        )
    expected = "" if key in FREE else _kind(_value(base, key))
    whole = expected in ("a mapping", "a list")  # which nothing can do without
    if expected and (value is not None or whole) and _kind(value) != expected:
        now = "" if expected == "a mapping" else f", as {known[key]} is"
        raise ConfigError(f"{override.input_line}: {key} must be {expected}{now}")


def _walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key below a node, inner ones too, with its raw value."""
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            yield here, value
            yield from _walk(value, here)


def _value(base: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(base, key)
    except OmegaConfBaseException:  # an interpolation that only the other overrides complete
        return None


def _kind(value: Any) -> str:
    """What a value may be replaced by; "" is anything."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list) or OmegaConf.is_list(value):
        return "a list"
    if isinstance(value, dict) or OmegaConf.is_dict(value):
        return "a mapping"
    return ""


def _alternatives(key: str, value: str, known: list[str]) -> list[str]:
    """Return what a misspelt key probably stood for, most likely first."""
    owners = [group for group, choices in groups().items() if value in choices]
    last = key.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == last and not k.startswith("run.")]
    near = closest(key, [*known, *groups()])
    return [f"{k}={value}" for k in dict.fromkeys([*owners, *same, *near])]


def closest(word: str, words: Sequence[str]) -> list[str]:
    """Return the words that look most like one, the likeliest first."""
    return difflib.get_close_matches(word, words, n=2, cutoff=0.5)


def did_you_mean(candidates: Any) -> str:
    """Return `: did you mean ...?` with the first candidates, or nothing without any."""
    first = list(candidates)[:2]
    return f": did you mean {' or '.join(first)}?" if first else ""


@lru_cache(maxsize=1024)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))


def compose_raw(overrides: tuple[str, ...]) -> DictConfig:
    """Compose by Hydra alone; its errors become ConfigError.

    The choices of groups are composed once, and Hydra's own function sets the values: configs that
    differ only in values, as the cells of a table do, cost little.

    Args:
        overrides: Overrides of one run.
    """
    parsed = parse(overrides)
    chosen = tuple(o.input_line for o in parsed if not _is_own_key(o.key_or_group))
    values = [o for o in parsed if _is_own_key(o.key_or_group)]
    try:
        cfg = copy.deepcopy(_composed(chosen))
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        lines = [line for e in (error, error.__cause__) if e for line in str(e).splitlines()]
        text = " ".join(line.strip() for line in lines if line.strip())
        raise ConfigError(text or type(error).__name__) from error
    return cfg


def load_choice(group: str, name: str) -> DictConfig:
    """Read one choice of a group by itself, as `convert` does for `norm`.

    Raises:
        ConfigError: There is no such choice; the message has the nearest.
    """
    if name not in groups()[group]:
        hint = did_you_mean(closest(name, groups()[group]))
        raise ConfigError(
            f"{group}={name} does not exist{hint} (there are {', '.join(groups()[group])})"
        )
    return OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml")

"""The run that overrides come to, remembered from one process to the next.

Composing a config takes milliseconds, and a report asks for thousands. The memory is a JSON file in
the user's cache folder. A name is kept with the hash of all that it depends on: the code that
composes, the files of configs that the overrides choose, the environment variables that these read.
A changed file makes only the runs that use it be composed anew; losing the memory costs time only.
"""

import atexit
import functools
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from normrepro import config, hints
from normrepro.record import write_json

CODE = (config.__file__, hints.__file__)
KEPT = 8  # files of other versions of the code, the youngest
MOST = 100_000  # names in a file, the youngest


def run_name(overrides: Sequence[str], seed: int) -> str:
    """Return the name of the run that overrides and a seed make."""
    told = f"{_chosen(tuple(overrides))}\n{seed}"
    key = hashlib.sha256(told.encode()).hexdigest()[:24]
    known = _memory()
    if key not in known:
        known[key] = _run_name(tuple(overrides), seed)
    return known[key]


def _run_name(overrides: tuple[str, ...], seed: int) -> str:
    """Find the name by composing; seeds of the same overrides share that."""
    cfg = _composed(overrides)
    cfg.seed = seed
    return config.run_name(cfg)


@functools.lru_cache(maxsize=256)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """Compose overrides once."""
    return config.compose(overrides)


@functools.cache
def _memory() -> dict[str, str]:
    """Read the names that earlier processes found."""
    return remembered("names", fingerprint())


def remembered(kind: str, mark: str) -> dict[str, Any]:
    """Read what earlier processes found, and write it back with what is added at this one's end.

    Args:
        kind: What is remembered: the name of the file begins with it.
        mark: Hash of all that it depends on.
    """
    path = folder() / f"{kind}-{mark}.json"
    known = _read(path)
    atexit.register(_save, path, known, len(known), os.getpid())
    return known


def _save(path: Path, known: dict[str, Any], before: int, process: int) -> None:
    """Write what is known if there is more of it, beside what other processes found meanwhile."""
    if len(known) == before or os.getpid() != process:  # a forked child leaves it to its parent
        return
    try:
        every = list((_read(path) | known).items())
        write_json(path, dict(every[-MOST:]))
        others = sorted(
            path.parent.glob(f"{path.name.partition('-')[0]}-*.json"),
            key=lambda p: p.stat().st_mtime,
        )
        for old in others[:-KEPT]:
            old.unlink()
    except OSError:
        pass  # a cache folder that cannot be written to costs time only


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds; a missing or damaged one holds nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def folder() -> Path:
    """Return the project's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normrepro"


@functools.cache
def fingerprint() -> str:
    """Return the hash of the code that composes."""
    told = [Path(path).read_bytes() for path in CODE]
    told += [importlib.metadata.version(name).encode() for name in ("hydra-core", "omegaconf")]
    return hashlib.sha256(b"\0".join(told)).hexdigest()[:16]


@functools.cache
def _chosen(overrides: tuple[str, ...]) -> str:
    """Return overrides with the hash of every file of configs that they may read."""
    own = dict(override.split("=", 1) for override in overrides if "=" in override)
    hashes = [_group(group, own.get(group)) for group in sorted(hints.groups())]
    return "\n".join([*overrides, _hash((hints.CONFIG_DIR / "config.yaml",)), *hashes])


@functools.cache
def _group(group: str, choice: str | None) -> str:
    """Return the hash of a group's choice; of the whole group where it is open or leads further."""
    path = hints.CONFIG_DIR / group / f"{choice}.yaml"
    if choice is not None and path.exists() and b"defaults:" not in path.read_bytes():
        return _hash((path,))
    return _hash(tuple(sorted((hints.CONFIG_DIR / group).rglob("*.yaml"))))


def _hash(paths: Sequence[Path]) -> str:
    """Return the hash of files with their names, and of the environment that they read."""
    told = [path.name.encode() + b"\0" + path.read_bytes() for path in paths]
    variables = sorted(set(re.findall(rb"oc\.env:(\w+)", b"".join(told))))
    told += [name + b"=" + os.environb.get(name, b"") for name in variables]
    return hashlib.sha256(b"\0".join(told)).hexdigest()

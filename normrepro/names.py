"""The run that overrides come to, remembered from one process to the next.

Composing a config takes milliseconds, and a report asks for thousands. The memory is a JSON file in
the user's cache folder, named by the hash of all that names depend on: the files of configs, the
code that composes, the environment variables that configs read. Losing it costs time only.
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
KEPT = 8  # files of other fingerprints, the youngest


def run_name(overrides: Sequence[str], seed: int) -> str:
    """Return the name of the run that overrides and a seed make."""
    told = "\n".join([*overrides, str(seed)])
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
        write_json(path, _read(path) | known)
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


def fingerprint() -> str:
    """Return the hash of all that the names of runs depend on."""
    files = sorted(path for path in hints.CONFIG_DIR.rglob("*.yaml"))
    told = [path.relative_to(hints.CONFIG_DIR).as_posix().encode() for path in files]
    told += [Path(path).read_bytes() for path in (*files, *CODE)]
    told += [importlib.metadata.version(name).encode() for name in ("hydra-core", "omegaconf")]
    variables = sorted(set(re.findall(rb"oc\.env:(\w+)", b"".join(told))))
    told += [name + b"=" + os.environb.get(name, b"") for name in variables]
    return hashlib.sha256(b"\0".join(told)).hexdigest()[:16]

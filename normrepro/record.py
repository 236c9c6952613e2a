"""What a run leaves behind: one JSON record, and the file that keeps the records of all runs.

A run writes ``result.json`` in its own directory; the driver merges it into
``results/records.jsonl``, one line per run. Both are replaced whole: no reader sees half a file.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from normrepro.trust import is_run_name

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
STATUSES = ("finished", "diverged")
PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "numpy")
COMPARED = ("status", "metrics", "history", "diverged", "data", "environment")
TIMINGS = {"seconds", "images_per_second"}  # these always vary


class RecordError(ValueError):
    """A record, or the file of records, that cannot be read."""


def environment() -> dict[str, Any]:
    """Describe code, versions and hardware of this process."""
    return {
        **dict(zip(("commit", "dirty"), _git_state(), strict=True)),
        "python": platform.python_version(),
        **{name.removesuffix("-core"): _version(name) for name in PACKAGES},
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": _gpu_model(),
        "platform": platform.platform(),
    }


def _git_state() -> tuple[str | None, bool | None]:
    """Return the commit and whether the code differs from it; (None, None) outside a checkout."""
    if _git("rev-parse", "--show-toplevel") != str(ROOT):
        return None, None
    # Results are written by the very runs that ask, and are no code.
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    return _git("rev-parse", "--verify", "--quiet", "HEAD"), bool(changes)


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in the repository, None where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    """Return the name of the current GPU, None without one."""
    import torch  # not at the top: reading records must not cost torch's import

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def write_json(path: Path | str, value: Any) -> None:
    """Write a value as JSON in one step; nan and inf, which JSON lacks, become null."""
    replace(Path(path), json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return the value with every non-finite float replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def replace(path: Path, text: str) -> None:
    """Put a text in a file's place, durable before it becomes visible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_result(path: Path | str) -> Record | None:
    """Return the record of one run, None where it has not ended or its file is damaged."""
    try:
        return _parse(Path(path).read_text(encoding="utf-8"))
    except OSError:
        return None


def read_records(path: Path | str) -> dict[str, Record]:
    """Return the records of a file by run name; a broken last line is left out with a warning."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = {}
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records[record["run"]] = record
        elif number == len(lines):
            print(f"{path}: the last line is cut short and left out", file=sys.stderr)
        else:
            raise RecordError(f"{path}:{number} is no record; restore the file from git")
    return records


def _parse(text: str) -> Record | None:
    """Return the record that a JSON text holds, None where it holds none of an ended run."""
    try:
        record = json.loads(text)
    except ValueError:
        return None
    ended = isinstance(record, dict) and record.get("status") in STATUSES
    return record if ended and is_run_name(record.get("run")) else None


def merge_records(path: Path | str, records: Iterable[Record]) -> list[str]:
    """Add records to a file, safe beside other processes; say what replaced ones differ in."""
    path = Path(path)
    with _locked(path):
        kept, messages, changed = read_records(path), [], False
        for record in map(_finite, records):
            old = kept.get(record["run"])
            said = difference(old, record) if old else []
            if old is None or said:
                kept[record["run"]], changed = record, True
            messages += said
        if changed:
            lines = [json.dumps(kept[run], sort_keys=True, allow_nan=False) for run in sorted(kept)]
            replace(path, "".join(f"{line}\n" for line in lines))
    return messages


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; it lies beside it, since the file itself is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def difference(old: Record, new: Record) -> list[str]:
    """Say in which results or surroundings two records of the same run differ, timings apart."""
    before, after = (dict(_leaves({key: one.get(key) for key in COMPARED})) for one in (old, new))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    history = [key for key in keys if key.startswith("history")]
    shown = [f"{key} {before.get(key)} -> {after.get(key)}" for key in keys if key not in history]
    shown += [f"history in {len(history)} values"] if history else []
    return [f"{new['run']} replaced: {', '.join(shown)}"] if shown else []


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every leaf but the timings."""
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if key not in TIMINGS:
            yield from _leaves(item, f"{path}.{key}" if path else str(key))

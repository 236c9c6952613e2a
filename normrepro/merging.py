"""Bringing together records that were made on several machines, without overwriting any."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normrepro import config
from normrepro.record import STATUSES, Record, merge_records, read_records

FORM: Mapping[str, type | tuple[type, ...]] = {
    "run": str,
    "status": str,
    "scale": str,
    "config": dict,
    "metrics": dict,
    "history": list,
    "data": dict,
    "environment": dict,
    "seconds": (int, float),
    "notes": list,
}
RESULTS = ("status", "metrics", "diverged", "data", "history")  # where runs must not differ
TIMINGS = {"seconds", "images_per_second"}  # these always vary
SHOWN = 4  # differences per run


def read(path: Path) -> tuple[list[Record], list[str]]:
    """Return the sound records of a file, and what is wrong with the other lines."""
    sound, wrong = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            wrong.append(f"{path}:{number}: no JSON")
            continue
        found = problems(record)
        wrong += [f"{path}:{number}: {problem}" for problem in found]
        sound += [] if found else [record]
    return sound, wrong


def problems(record: Any) -> list[str]:
    """Say what is wrong with a record: its form, its numbers, its name."""
    if not isinstance(record, dict):
        return ["no record"]
    found = [f"lacks {key}" for key in FORM if key not in record]
    found += [
        f"{key} is of the wrong type"
        for key, kind in FORM.items()
        if key in record and not isinstance(record[key], kind)
    ]
    return found or [*_wrong_status(record), *_wrong_numbers(record), *_wrong_name(record)]


def _wrong_status(record: Record) -> Iterator[str]:
    """Yield what is wrong with a record's status."""
    if record["status"] not in STATUSES:
        yield f"{record['run']}: status {record['status']!r} is none of {', '.join(STATUSES)}"
    elif record["status"] == "finished" and not record["metrics"]:
        yield f"{record['run']}: finished without metrics"


def _wrong_numbers(record: Record) -> Iterator[str]:
    """Yield the numbers that are not finite; a finished run's metrics must be numbers at all."""
    for key, value in _leaves({key: record[key] for key in ("metrics", "history", "seconds")}):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{record['run']}: {key} is {value}"
    for key, value in record["metrics"].items() if record["status"] == "finished" else ():
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{record['run']}: metrics.{key} is {value!r}, no number"


def _wrong_name(record: Record) -> Iterator[str]:
    """Yield a name that is not that of the record's own config."""
    config.register_resolvers()
    try:
        name = config.run_name(OmegaConf.create(record["config"]))
        scale = record["config"]["scale"]["name"]
    except (OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        yield f"{record['run']}: its config cannot be read: {type(error).__name__}: {error}"
        return
    if name != record["run"]:
        yield f"{record['run']}: its config is that of {name}"
    if scale != record["scale"]:
        yield f"{record['run']}: scale {record['scale']}, but {scale} in its config"


def conflict(ours: Record, theirs: Record) -> str:
    """Say in which results two records of a run differ, with both values; empty where in none."""
    one, two = (dict(_leaves({key: own.get(key) for key in RESULTS})) for own in (ours, theirs))
    keys = [key for key in one | two if one.get(key) != two.get(key)]
    texts = [f"{key} {one.get(key)} (ours) {two.get(key)} (theirs)" for key in keys[:SHOWN]]
    texts += [f"{len(keys) - SHOWN} further values"] if keys[SHOWN:] else []
    return f"{ours['run']}: {', '.join(texts)}" if texts else ""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every leaf but the timings."""
    if not isinstance(value, dict | list):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if key not in TIMINGS or not path:
            yield from _leaves(item, f"{path}.{key}" if path else str(key))


def merge(path: Path, records: Iterable[Record], keep: str | None) -> tuple[int, list[str]]:
    """Add records to a file.

    Args:
        path: The file that they go into.
        records: Sound records.
        keep: Whose record stays where results differ, "ours" or "theirs"; None keeps ours too.

    Returns:
        How many runs are new or replaced, and a line for every conflict.
    """
    known, taken, conflicts = read_records(path), {}, []
    for record in records:
        old = known.get(record["run"])
        found = conflict(old, record) if old else ""
        conflicts += [found] if found else []
        if old is None or (found and keep == "theirs"):
            known[record["run"]] = taken[record["run"]] = record
    merge_records(path, taken.values())
    return len(taken), conflicts

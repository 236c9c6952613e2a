"""What the name of a metric in a table means in a run's record.

    error, loss, error_ema, error_disturbed_0.1 ...    a metric of the finished run
    accuracy_ema, best_accuracy    100 - the error of the same name, in percent
    train_error@30, error@last     its value at an epoch of the history
    esm_mean@50[3], esm_mean@50.max    an item (from 0) or the summary of a list that stands there

A run that diverged has no metrics; its history can be read as far as it goes.
"""

import functools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normrepro.checks import ConfigError
from normrepro.record import Record

FORM = re.compile(r"((?:\w|\.\d)+)(?:@(\d+|last)(?:\[(\d+)\]|\.(max|min|mean))?)?")
LAST = "last"
SUMMARIES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "max": max,
    "min": min,
    "mean": statistics.fmean,
}


@dataclass(frozen=True)
class Metric:
    """A name taken apart: the key in the record, and where and what to read there."""

    key: str
    complement: bool  # 100 - the record's number
    epoch: str | None
    item: int | None
    summary: str | None


@functools.cache
def parse(name: str) -> Metric:
    """Take a metric's name apart.

    Raises:
        ConfigError: The name is not of the form above.
    """
    found = FORM.fullmatch(name)
    if not found:
        raise ConfigError(f"{name!r} is no metric: such as error, accuracy_ema, esm_mean@50[3]")
    key, epoch, item, summary = found.groups()
    error = re.sub(r"(^|_)accuracy(?=_|$)", r"\1error", key, count=1)
    return Metric(error, error != key, epoch, None if item is None else int(item), summary)


def value(record: Record, name: str) -> float | None:
    """Return a run's number, None where the run has none or diverged."""
    metric = parse(name)
    if metric.epoch is None:
        found = None if record["status"] == "diverged" else record["metrics"].get(metric.key)
    else:
        found = _item(_at(record, metric), metric)
    return number(found, metric)


def number(found: Any, metric: Metric) -> float | None:
    """Return what stands in a record as the metric's number, None where it is none."""
    usable = isinstance(found, int | float) and not isinstance(found, bool)
    if not usable or not math.isfinite(found):
        return None
    return 100.0 - found if metric.complement else float(found)


def curve(record: Record, name: str) -> list[tuple[float, float]]:
    """Return (epoch, number) of every epoch whose history has the metric; none knows the best."""
    metric = parse(name.partition("@")[0].removeprefix("best_"))
    points = [(row["epoch"], number(row.get(metric.key), metric)) for row in _history(record)]
    return [(epoch, found) for epoch, found in points if found is not None]


def per_layer(record: Record, name: str, epoch: int | str) -> list[float | None]:
    """Return the list of a metric that stands at an epoch of the history; empty without one."""
    metric = parse(f"{name.partition('@')[0]}@{epoch}")
    found = _at(record, metric)
    return [number(own, metric) for own in found] if isinstance(found, list) else []


def family(name: str) -> str:
    """Return the metric that a further evaluation gives anew: ``error_ema`` is an ``error``."""
    return re.sub(r"^((?:best_|top5_)*(?:error|accuracy))_[\w.]+", r"\1", name)


def title(name: str) -> str:
    """Return a metric's name for a reader: ``accuracy of the last epoch``."""
    return " ".join(words(name))


def words(name: str) -> tuple[str, str]:
    """Return what is measured and when, for a reader."""
    key, epoch, item, summary = FORM.fullmatch(name).groups()
    plain = key.removeprefix("best_").replace("_", " ").replace("top5", "top-5")
    place = f", layer {item}," if item else f", {summary} of the layers," if summary else ""
    if epoch:
        return f"{plain}{place}", f"at {'the last epoch' if epoch == LAST else f'epoch {epoch}'}"
    return plain, f"of the {'best' if key.startswith('best_') else 'last'} epoch"


def _history(record: Record) -> Sequence[Mapping[str, Any]]:
    return record.get("history") or []


def _at(record: Record, metric: Metric) -> Any:
    """Return what the history has of a metric at its epoch."""
    rows = _history(record)
    if metric.epoch == LAST:
        return rows[-1].get(metric.key) if rows else None
    return next((row.get(metric.key) for row in rows if row["epoch"] == int(metric.epoch)), None)


def _item(found: Any, metric: Metric) -> Any:
    """Return an item or the summary of a list, and anything else as it is."""
    if metric.item is not None:
        return found[metric.item] if isinstance(found, list) and metric.item < len(found) else None
    if metric.summary:
        own = [item for item in found or () if item is not None] if isinstance(found, list) else ()
        return SUMMARIES[metric.summary](own) if own else None
    return found

"""Checks of a layer's arguments, so that a wrong one is named before any work starts."""

import math
from typing import Any


def integer(least: int = 1, **arguments: Any) -> None:
    """Refuse arguments that are not integers of at least `least`: ValueError names the first."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value} must be an integer of at least {least}")


def number(low: float, high: float = float("inf"), **arguments: Any) -> None:
    """Refuse arguments that are not numbers from `low` to `high`: ValueError names the first."""
    for name, value in arguments.items():
        try:
            own = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, ValueError):
            own = math.nan
        if not low <= own <= high:
            limit = "or more" if high == float("inf") else f"to {high:g}"
            raise ValueError(f"{name}={value} must be a number of {low:g} {limit}")

"""The values that a paper reports: a number, "70.2 ± 0.1", "-" (did not converge) or nothing."""

import re
from typing import Any

from normrepro.checks import ConfigError

DIVERGED = "-"  # as the papers write it
WITH_SPREAD = re.compile(r"([+-]?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)")

Reported = float | str | None


def check(where: str, own: Any) -> None:
    """Refuse a value that is none of the four kinds."""
    text = isinstance(own, str) and (own == DIVERGED or WITH_SPREAD.fullmatch(own))
    number = isinstance(own, int | float) and not isinstance(own, bool)
    if not (text or number or own is None):
        raise ConfigError(f"{where}: {own!r} is no number, null, '-' or such as '70.2 ± 0.1'")


def value(own: Reported) -> float | None:
    """Return the number that is reported, None where there is none."""
    if isinstance(own, str):
        found = WITH_SPREAD.fullmatch(own)
        return float(found[1]) if found else None
    return own


def spread(own: Reported) -> float | None:
    """Return the standard deviation that is reported, None where there is none."""
    found = WITH_SPREAD.fullmatch(own) if isinstance(own, str) else None
    return float(found[2]) if found else None


def is_number(own: Reported) -> bool:
    """Say whether a number is reported."""
    return value(own) is not None

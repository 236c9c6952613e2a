"""The papers' claims as data, and a check of each that can be checked.

A claim stands in `<paper>.yaml` (across.yaml: between the papers, and the arithmetic of their
tables); declared.py reads and explains the form. A check is a function without arguments that
measures: it returns numbers by name. What they are held to, and what is concluded, is the YAML's.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent
Check = Callable[[], Mapping[str, float]]
CHECKS: dict[str, Check] = {}
THEMES = (
    "arithmetic",
    "averages",
    "backward",
    "clipping",
    "compensation",
    "distribution",
    "estimates",
    "evaluation",
    "fitting",
    "inference",
    "instances",
    "mnist",
    "placement",
    "protocol",
    "shift",
    "stacking",
    "trainings",
    "variance",
    "web",
    "window",
)


def check(function: Check) -> Check:
    """Register a check under its function's name."""
    if function.__name__ in CHECKS:
        raise ValueError(f"two checks are called {function.__name__}")
    CHECKS[function.__name__] = function
    return function


def load_checks() -> dict[str, Check]:
    """Import every theme and return the checks by name."""
    for theme in THEMES:
        import_module(f"normrepro.claims.{theme}")
    return CHECKS

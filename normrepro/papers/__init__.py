"""The papers' declarations: one YAML per paper, read into tables.

The comment at the head of mabn.yaml explains the form; declared.py reads and checks it.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from normrepro.config import ConfigError
from normrepro.papers.declared import Table, check_illustrations, parse

__all__ = [
    "FOLDER",
    "illustrations",
    "load",
    "load_all",
    "load_panels",
    "load_table",
    "names",
    "parse",
]

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """List the papers that are declared."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def content(paper: str) -> Mapping[str, Any]:
    """Read a paper's YAML as it stands; a key that comes twice is an error."""
    if paper not in names():
        raise ConfigError(f"no paper {paper!r}; there are: {', '.join(names())}")
    return OmegaConf.to_container(OmegaConf.load(FOLDER / f"{paper}.yaml"))


def load(paper: str) -> dict[str, Table]:
    """Read the tables and figures of a paper, by names such as ``table1``."""
    return parse(paper, content(paper))


def load_panels(paper: str, name: str) -> list[Table]:
    """Read a table or figure, or all panels of one: ``figure2`` is 2a, 2b and so on."""
    panels = [table for key, table in load(paper).items() if key[:-1] == name]
    return panels if panels and panels[0].name[-1].isalpha() else [load_table(paper, name)]


def load_table(paper: str, name: str) -> Table:
    """Read one table or figure of a paper."""
    found = load(paper)
    if name in found:
        return found[name]
    drawn = {f"figure{number}": why for number, why in illustrations(paper).items()}
    if name in drawn:
        raise ConfigError(f"{paper} {name} has nothing to run: {drawn[name]}")
    raise ConfigError(f"{paper} has no {name!r}; it has: {', '.join(found)}")


def load_all() -> list[Table]:
    """Read every table and figure of every paper, also those that cannot be run yet."""
    return [table for paper in names() for table in load(paper).values()]


def illustrations(paper: str) -> dict[int, str]:
    """Return the figures of a paper that show no data, each with the reason."""
    return check_illustrations(paper, content(paper))

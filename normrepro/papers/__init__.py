"""The papers' declarations: one YAML per paper, read into tables.

The comment at the head of mabn.yaml explains the form.
"""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from normrepro.config import ConfigError
from normrepro.tables import Line, Scale, Table

FOLDER = Path(__file__).parent
KINDS = {"tables": "table", "figures": "figure"}
TABLE_NEEDS = {"title", "source", "metric", "unit", "better", "base", "columns", "rows", "scales"}
TABLE_KEYS = TABLE_NEEDS | {"decimals", "delta", "tolerance", "notes"}
LINE_KEYS = {"label", "overrides", "metric", "reported"}
SCALE_KEYS = {"seeds", "base", "rows", "columns", "notes"}


def names() -> list[str]:
    """List the papers that are declared."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(paper: str) -> dict[str, Table]:
    """Read the tables and figures of a paper, by names such as ``table1``."""
    if paper not in names():
        raise ConfigError(f"no paper {paper!r}; there are: {', '.join(names())}")
    content = OmegaConf.load(FOLDER / f"{paper}.yaml")
    return parse(paper, OmegaConf.to_container(content))


def load_table(paper: str, name: str) -> Table:
    """Read one table or figure of a paper."""
    found = load(paper)
    if name not in found:
        raise ConfigError(f"{paper} has no {name!r}; it has: {', '.join(found)}")
    return found[name]


def load_all() -> list[Table]:
    """Read every table and figure of every paper."""
    return [table for paper in names() for table in load(paper).values()]


def parse(paper: str, content: Mapping[str, Any]) -> dict[str, Table]:
    """Build the tables and figures of a paper from what its YAML holds."""
    head = {"paper": paper, "short": content["short"]}
    return {
        f"{kind}{number}": _table({**head, "name": f"{kind}{number}"}, declared)
        for group, kind in KINDS.items()
        for number, declared in (content.get(group) or {}).items()
    }


def _table(head: Mapping[str, str], declared: Mapping[str, Any]) -> Table:
    """Build one table, refusing what it does not know."""
    where = f"{head['paper']}.yaml, {head['name']}"
    _check_keys(where, declared, TABLE_KEYS, TABLE_NEEDS)
    table = Table(
        **head,
        **{key: declared[key] for key in ("title", "source", "metric", "unit", "better")},
        decimals=declared.get("decimals", 2),
        delta=declared.get("delta"),
        tolerance=declared.get("tolerance"),
        base=tuple(declared["base"]),
        rows=_lines(where, declared["rows"]),
        columns=_lines(where, declared["columns"]),
        scales={name: _scale(where, own) for name, own in declared["scales"].items()},
        notes=tuple(declared.get("notes", ())),
    )
    _check_table(where, table)
    return table


def _check_table(where: str, table: Table) -> None:
    """Refuse mention of rows and columns that the table does not have."""
    rows, columns = {row.key for row in table.rows}, {column.key for column in table.columns}
    for row in table.rows:
        _check_keys(f"{where}, reported of {row.key}", row.reported, columns)
    for name, scale in table.scales.items():
        _check_keys(f"{where}, rows of scale {name}", scale.rows, rows)
        _check_keys(f"{where}, columns of scale {name}", scale.columns, columns)
    _check_keys(f"{where}, delta", [table.delta] if table.delta else [], rows)
    if table.better not in ("lower", "higher"):
        raise ConfigError(f"{where}: better is lower or higher, not {table.better!r}")


def _lines(where: str, declared: Mapping[str, Any]) -> tuple[Line, ...]:
    """Build the rows or the columns of a table."""
    for key, line in declared.items():
        _check_keys(f"{where}, {key}", line, LINE_KEYS, {"label"})
    return tuple(
        Line(
            key=key,
            label=line["label"],
            overrides=tuple(line.get("overrides", ())),
            metric=line.get("metric"),
            reported=line.get("reported", {}),
        )
        for key, line in declared.items()
    )


def _scale(where: str, declared: Mapping[str, Any]) -> Scale:
    """Build what a table declares for one scale."""
    _check_keys(f"{where}, scales", declared, SCALE_KEYS, {"seeds"})
    rows, columns = (declared.get(axis, {}) for axis in ("rows", "columns"))
    return Scale(
        seeds=declared["seeds"],
        base=tuple(declared.get("base", ())),
        rows={key: tuple(overrides) for key, overrides in rows.items()},
        columns={key: tuple(overrides) for key, overrides in columns.items()},
        notes=tuple(declared.get("notes", ())),
    )


def _check_keys(
    where: str, declared: Iterable[str], known: Set[str], needed: Set[str] = frozenset()
) -> None:
    """Refuse keys that are not known, and the lack of needed ones."""
    unknown, missing = set(declared) - known, needed - set(declared)
    if unknown:
        raise ConfigError(
            f"{where}: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(sorted(missing))}")

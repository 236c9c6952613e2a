"""From records to markdown, HTML and figures: the same records give the same bytes.

entries.py and ranking.py hold what is known of a table's entries; grids.py, page.py and index.py
turn it into the blocks of a page; blocks.py writes blocks as markdown and as HTML.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from normrepro.blocks import Block, markdown
from normrepro.record import Record, read_records, replace
from normrepro.report import index, plots, site, unbuilt
from normrepro.report.entries import Found, entries
from normrepro.report.page import page
from normrepro.tables import Table, collect

FIGURES = "figures"


def write(table: Table, scale: str, records: Mapping[str, Record], results: Path) -> Path:
    """Write a table's markdown and figure into the results; return the markdown's path."""
    return _write(table, scale, collect(table, scale, records), results)


def write_all(tables: Sequence[Table], results: Path) -> list[Path]:
    """Write every table that has a record, those that wait for a task, and the index."""
    records = read_records(results / "records.jsonl")
    paths = []
    for table in tables:
        if table.obstacle:
            paths.append(unbuilt.write(table, results / f"{table.key}.md"))
        for scale in table.scales:
            found = collect(table, scale, records)
            if any(found.values()):
                paths.append(_write(table, scale, found, results))
    return [*paths, *write_index(tables, records, results)]


def write_index(
    tables: Iterable[Table], records: Mapping[str, Record], results: Path
) -> list[Path]:
    """Write the index of all tables, ``README.md``, and the same with the plots, ``index.html``."""
    states = [index.state_of(table, records) for table in tables]
    text = site.document(states, results)
    path = results / "index.html"
    replace(path, text)
    return [_save(results / "README.md", index.page(states)), path]


def _write(table: Table, scale: str, found: Found, results: Path) -> Path:
    """Write a table's markdown and figure from the records of its entries."""
    drawn = plots.write(table, scale, entries(table, found), results / FIGURES)
    picture = f"{FIGURES}/{table.key}.{scale}.svg" if drawn else None
    return _save(results / f"{table.key}.{scale}.md", page(table, scale, found, picture))


def _save(path: Path, blocks: Iterable[Block]) -> Path:
    """Write blocks as markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, markdown(blocks))
    return path

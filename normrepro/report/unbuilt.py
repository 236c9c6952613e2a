"""The pages of tables that nothing can be run of: the paper's values, and what the layers say."""

from pathlib import Path

from normrepro.blocks import Block, Points, Title, markdown
from normrepro.record import replace
from normrepro.report import layers
from normrepro.report.entries import entries
from normrepro.report.grids import by_column, papers
from normrepro.report.page import reasons
from normrepro.report.ranking import best
from normrepro.tables import Table


def write(table: Table, path: Path) -> Path:
    """Write the page of a table; looking at layers takes seconds, so it is done once per code."""
    made_from = f"<!-- made from {layers.fingerprint(table)} -->" if table.describes else ""
    if not (made_from and path.exists() and made_from in path.read_text(encoding="utf-8")):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, markdown([*page(table), made_from]))
    return path


def page(table: Table) -> list[Block]:
    """Return the page of a table that waits for a task, or that describes layers."""
    about = f"The paper's {table.kind}: {table.title} ({table.source})."
    notes = Points(list(table.notes))
    if table.describes:
        return [Title(table.label, 1), about, *layers.blocks(table), notes]
    every = entries(table, {})
    strong = best(table, every, of_paper=True)
    return [
        Title(f"{table.label}: the paper's values only", 1),
        f"**{table.obstacle[0].upper()}{table.obstacle[1:]}. Nothing here was measured by this "
        "project: all numbers are the paper's.**",
        about,
        by_column(table, every, lambda entry: papers(strong, entry)),
        Points(reasons(every)),
        notes,
    ]

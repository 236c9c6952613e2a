"""The page of a table at a scale: a pure function of the records.

The paper's values stand apart from ours; differences to them and verdicts appear only at
``scale=paper``, where the protocol is the paper's.
"""

from collections.abc import Sequence

from omegaconf import OmegaConf

from normrepro import metrics
from normrepro.blocks import Block, Code, Picture, Points, Title
from normrepro.config import CONFIG_DIR
from normrepro.report import grids, paired, provenance, ranking, verdict
from normrepro.report.entries import DIVERGED, EMPTY, LACKING, Entries, Found, entries
from normrepro.tables import Table


def page(table: Table, scale: str, found: Found, picture: str | None = None) -> list[Block]:
    """Return the page of a table.

    Args:
        table: The table.
        scale: The scale whose runs it shows.
        found: The records of every (row, column) by seed, as ``collect`` finds them.
        picture: The path of its figure from the page, None without one.
    """
    every = entries(table, found)
    records = [record for entry in every.values() for record in entry.records.values()]
    tests = paired.table_of(table, every)
    return [
        Title(f"{table.label}, scale: {scale}", 1),
        f"**Scale: {sentence(scale)}.**",
        f"The paper's {table.kind}: {table.title} ({table.source}).",
        f"{progress(table, scale, found)} {legend(table, every)}",
        verdict.RULE if scale == "paper" else "",
        *grids.results(table, scale, every),
        Points(reasons(every)),
        Picture(f"{table.label}, scale: {scale}", picture) if picture else "",
        Title("Protocol"),
        provenance.protocol(table, scale),
        Points([*table.notes, *table.scale(scale).notes]),
        Title("Every seed") if records else "",
        grids.per_seed(table, every) if records else "",
        *ranking.sentences(table, every),
        *([Title("Paired comparisons"), paired.ABOUT, tests] if tests else []),
        Title("Provenance"),
        provenance.describe(records),
        "Make it again:",
        Code(provenance.command(table, scale, found)),
    ]


def sentence(scale: str) -> str:
    """Return what a scale says of itself."""
    return str(OmegaConf.load(CONFIG_DIR / "scale" / f"{scale}.yaml").sentence).rstrip(".")


def progress(table: Table, scale: str, found: Found) -> str:
    """Say how many cells have a run, and how many of the declared seeds."""
    seeds = table.scale(scale).seeds
    cells = sum(1 for entry in found.values() if entry)
    runs = sum(1 for entry in found.values() for seed in entry if seed < seeds)
    more = sum(len(entry) for entry in found.values()) - runs
    further = f" and {more} of further seeds" if more else ""
    return f"{cells} of {len(found)} cells; {runs} of {len(found) * seeds} declared runs{further}."


def legend(table: Table, every: Entries) -> str:
    """Say what the numbers of the grid are."""
    kinds: dict[tuple[str, str], dict[str, None]] = {}
    for entry in every.values():
        what, when = metrics.words(entry.metric)
        kinds.setdefault((when, entry.better), {})[what] = None
    said = "; ".join(
        f"{', '.join(what)} {when}, {better} is better" for (when, better), what in kinds.items()
    )
    delta = " Δ is the mean of the paired differences over seeds." if table.delta else ""
    bold = {"rows": " Bold: the best of its column.", "columns": " Bold: the best of its row."}
    return (
        f"Shown: {said}; mean ± sample standard deviation over n seeds; {EMPTY} has no run yet, "
        f"{DIVERGED} diverged{_lacking(every)}.{delta}{bold.get(table.compare, '')}"
    )


def _lacking(every: Entries) -> str:
    """Explain the word for runs without the number, where it stands."""
    there = any(set(e.records) - set(e.values) - set(e.diverged) for e in every.values())
    return f", {LACKING}: the run has no such number" if there else ""


def reasons(every: Entries) -> Sequence[str]:
    """Return what the paper says of its dashes and gaps."""
    return [
        f"{entry.row.label}, {entry.column.label}: the paper has "
        f"{f'“{DIVERGED}”' if entry.paper == DIVERGED else 'no value'}: {entry.reason}"
        for entry in every.values()
        if entry.reason
    ]

"""Markdown of a table, and the index of all tables: pure functions of the records.

The same records give the same bytes. The paper's values stand in their own column; differences to
them and verdicts appear only at ``scale=paper``, where the protocol is the paper's.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from normrepro import columns, figure, provenance
from normrepro.columns import Found, grid
from normrepro.config import CONFIG_DIR
from normrepro.record import Record, read_records
from normrepro.tables import Line, Table, collect


def write(table: Table, scale: str, records: Mapping[str, Record], results: Path) -> Path:
    """Write a table's markdown and figure into the results; return the markdown's path."""
    found = collect(table, scale, records)
    drawn = figure.write(table, scale, found, results / "figures")
    path = results / f"{table.key}.{scale}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(table, scale, found, drawn), encoding="utf-8")
    return path


def render(table: Table, scale: str, found: Found, drawn: bool = False) -> str:
    """Return a table's markdown from the records of its entries.

    Args:
        table: The table.
        scale: The scale whose runs it shows.
        found: The records of every (row, column) by seed, as ``collect`` finds them.
        drawn: Whether the figure of the metric per epoch exists.
    """
    picture = f"![{table.label}: {table.metric} per epoch](figures/{table.key}.{scale}.svg)"
    records = [record for entry in found.values() for record in entry.values()]
    parts = [
        f"# {table.label}, scale: {scale}",
        f"**Scale: {sentence(scale)}.**",
        f"The paper's table: {table.title} ({table.source}).",
        f"{progress(table, scale, found)} {legend(table)}",
        grid(*columns.results(table, scale, found)),
        picture if drawn else "",
        "## Protocol",
        provenance.protocol(table, scale),
        "\n".join(f"- {note}" for note in (*table.notes, *table.scale(scale).notes)),
        "## Every seed",
        grid(*columns.per_seed(table, found)),
        *[text for column in table.columns for text in comparisons(table, column, found)],
        "## Provenance",
        provenance.describe(records),
        "Make it again:",
        f"```bash\n{provenance.command(table, scale, found)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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


def legend(table: Table) -> str:
    """Say what the numbers of the grid are."""
    metric = table.metric.removeprefix("best_")
    when = "best epoch" if table.metric.startswith("best_") else "last epoch"
    delta = " Δ is the mean of the paired differences over seeds." if table.delta else ""
    return (
        f"The {metric} is the {when}'s, {table.better} is better: mean ± sample standard deviation "
        f"over n seeds; {columns.EMPTY} has no run yet, {columns.DIVERGED} diverged.{delta}"
    )


def comparisons(table: Table, column: Line, found: Found) -> list[str]:
    """Say how the rows of a column order, where every row has runs."""
    seeds = [set(found[row.key, column.key]) for row in table.rows]
    paired = sorted(set.intersection(*seeds))
    if not paired or len(table.rows) < 2:
        return []
    head = f"{column.label}: " if table.columns[1:] else ""
    losses = {row.key: _losses(table, column, found[row.key, column.key]) for row in table.rows}
    means = {key: statistics.fmean(own[seed] for seed in paired) for key, own in losses.items()}
    texts = [f"{head}Means over {count_of(paired)}, best first: {_order(table, means)}."]
    reported = {row.key: row.reported.get(column.key) for row in table.rows}
    if all(columns.is_number(own) for own in reported.values()):
        paper = {key: _loss(table, own) for key, own in reported.items()}
        texts.append(f"{head}The paper's order: {_order(table, paper)}.")
        worst = max(paper, key=lambda key: paper[key])  # the first declared of equals
        rest = [own for key, own in losses.items() if key != worst]
        count = sum(all(losses[worst][s] > own[s] for own in rest) for s in paired)
        texts.append(
            f"{head}{columns.line_of(table, worst).label}, the worst row in the paper, "
            f"is the worst in {count} of {count_of(paired)}."
        )
    return texts


def count_of(paired: Sequence[int]) -> str:
    """Return the number of paired seeds in words that agree with it."""
    return f"{len(paired)} paired seed{'s' if len(paired) > 1 else ''}"


def _losses(table: Table, column: Line, entry: Mapping[int, Record]) -> dict[int, float]:
    """Return an entry by seed, larger is worse, a diverged run worst of all."""
    return {
        seed: _loss(table, columns.value(table, column, record)) for seed, record in entry.items()
    }


def _loss(table: Table, own: float | None) -> float:
    """Turn a number so that larger is worse."""
    if own is None:
        return float("inf")
    return own if table.better == "lower" else -own


def _order(table: Table, losses: Mapping[str, float]) -> str:
    """Write the rows from best to worst, equal ones joined."""
    ranked = sorted(losses, key=lambda key: losses[key])
    text = columns.line_of(table, ranked[0]).label
    for before, key in itertools.pairwise(ranked):
        sign = "=" if losses[before] == losses[key] else "<" if table.better == "lower" else ">"
        text += f" {sign} {columns.line_of(table, key).label}"
    return text


def write_all(tables: Sequence[Table], results: Path) -> list[Path]:
    """Write every table that has a record, and ``README.md``, the index; return their paths."""
    records = read_records(results / "records.jsonl")
    paths = [
        write(table, scale, records, results)
        for table in tables
        for scale in table.scales
        if any(collect(table, scale, records).values())
    ]
    return [*paths, write_index(tables, records, results)]


def write_index(tables: Iterable[Table], records: Mapping[str, Record], results: Path) -> Path:
    """Write ``README.md``, the index of all tables, into the folder of results."""
    path = results / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(index(tables, records), encoding="utf-8")
    return path


def index(tables: Iterable[Table], records: Mapping[str, Record]) -> str:
    """Return the list of every table at every scale that it declares, with its state."""
    rows = [_index_row(table, scale, records) for table in tables for scale in table.scales]
    about = (
        "Every number stands in `records.jsonl`, one line per finished run; `make report` renders "
        "the tables from it. Only `scale: paper` follows a paper's protocol; others are smaller."
    )
    head = ["table", "of the paper", "scale", "state", "seeds"]
    return f"# Results\n\n{about}\n\n{grid(head, rows, numbers=False)}\n"


def _index_row(table: Table, scale: str, records: Mapping[str, Record]) -> list[str]:
    """Return one line of the index."""
    found = collect(table, scale, records)
    counts = [len(entry) for entry in found.values()]
    link = f"[{table.label}]({table.key}.{scale}.md)" if any(counts) else table.label
    state = f"{sum(map(bool, counts))} of {len(counts)} cells" if any(counts) else "no run yet"
    low, high = min(counts), max(counts)
    seeds = str(high) if low == high else f"{low} to {high}"
    return [link, table.title, scale, state, f"{seeds} of {table.scale(scale).seeds}"]

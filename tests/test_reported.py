"""The papers' values in the YAMLs: each stands on its line of the paper, and none changes unseen.

Where the papers' texts are not at hand, reported.sha256 guards the values, one line per table.
After a wanted change: ``python -m tests.test_reported`` writes it anew.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from normrepro import papers, reported
from normrepro.checks import ConfigError
from normrepro.tables import Line, Table

TEXTS = Path(__file__).resolve().parents[2] / "shared" / "papers"
SUMS = Path(__file__).parent / "reported.sha256"
NUMBER = re.compile(r"(?<![\d.])\d+(?:\.\d+)?")
NEAR = 20  # lines from the caption
TABLES = papers.load_all()
each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.key)


def text_of(paper: str) -> list[str]:
    path = TEXTS / f"{paper}.txt"
    if not path.exists():
        pytest.skip(f"the text of the paper {paper} is not at hand")
    return path.read_text(encoding="utf-8").splitlines()


@each_table
def test_every_reported_value_stands_on_its_line_of_the_paper(table: Table) -> None:
    if table.describes:
        pytest.skip("reports words, not numbers")
    lines = text_of(table.paper)
    if table.kind == "figure":  # a plot's values stand in the text, or in a table
        values = [[own] for row in table.rows for own in numbers(row, table.columns)]
        assert not missing(values, lines)
        return
    near = around_caption(table, lines)
    rows = [numbers(row, table.columns) for row in table.rows]
    columns = [
        [own for row in table.rows for own in numbers(row, [column])] for column in table.columns
    ]
    assert any(rows)
    absent = missing(rows, near)  # a row of ours is a line of the paper, or a column is
    assert not absent or not missing(columns, near), absent
    for row in table.rows:
        for text in row.ocr.values():
            assert any(text in line for line in near), text
        if reported.DIVERGED in row.reported.values():
            assert any(re.search(r"(^|\s)[-–]($|\s)", line) for line in near), row.key


def around_caption(table: Table, lines: Sequence[str]) -> Sequence[str]:
    """The lines before and after the caption, where the text has the table's rows."""
    caption = re.compile(rf"table {table.name.removeprefix('table')}[:.]", re.IGNORECASE)
    at = next(i for i, line in enumerate(lines) if caption.match(line))
    return lines[max(0, at - NEAR) : at + NEAR]


def numbers(row: Line, columns: Sequence[Line]) -> list[float]:
    """The numbers that a row reports, mean and spread, as they follow each other in print."""
    plain = [row.reported.get(column.key) for column in columns if column.key not in row.ocr]
    return [float(n) for own in plain if own not in (None, "-") for n in NUMBER.findall(str(own))]


def missing(wanted: Sequence[Sequence[float]], lines: Sequence[str]) -> list[Sequence[float]]:
    """The sequences of numbers that no line has in their order."""
    found = [[float(number) for number in NUMBER.findall(line)] for line in lines]
    return [own for own in wanted if not any(follows(own, line) for line in found)]


def follows(wanted: Sequence[float], line: Sequence[float]) -> bool:
    rest = iter(line)
    return all(number in rest for number in wanted)


def test_a_changed_or_exchanged_value_is_missed() -> None:
    lines = ["BN\t70.2\t68.4\t55.9\t-", "GN\t68.9±0.1\t69.0"]
    assert not missing([[70.2, 55.9], [68.9, 0.1, 69.0], []], lines)
    for wrong in ([70.3], [55.9, 70.2], [68.9, 55.9], [70.2, 70.2]):
        assert missing([wrong], lines) == [wrong]


def sums() -> str:
    """One line per table or figure with values: the hash of them, and the table's key."""
    lines = []
    for table in TABLES:
        told = {row.key: {k: str(own) for k, own in row.reported.items()} for row in table.rows}
        if any(told.values()):
            text = json.dumps(told, sort_keys=True)
            lines.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {table.key}\n")
    return "".join(sorted(lines, key=lambda line: line.split()[1]))


def test_reported_values_are_those_that_were_checked_against_the_papers() -> None:
    kept, now = (set(text.splitlines()) for text in (SUMS.read_text(), sums()))
    changed = sorted({line.split()[1] for line in kept ^ now})
    how = "compare with the papers, then: python -m tests.test_reported"
    assert not changed, f"{changed}: {how}"


@pytest.mark.parametrize(
    ("own", "value", "spread"),
    [(70.2, 70.2, None), ("70.2 ± 0.1", 70.2, 0.1), ("-", None, None), (None, None, None)],
)
def test_the_forms_of_a_reported_value(own, value, spread) -> None:
    reported.check("here", own)
    assert reported.value(own) == value
    assert reported.spread(own) == spread
    assert reported.is_number(own) == (value is not None)


@pytest.mark.parametrize("own", ["70.2", "about 3", "70.2±0.1", True, "–", [1]])
def test_other_forms_are_refused(own) -> None:
    with pytest.raises(ConfigError, match="here"):
        reported.check("here", own)


if __name__ == "__main__":
    SUMS.write_text(sums())

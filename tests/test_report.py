"""The rendered tables: the same bytes for the same records, and nothing that is not in them."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from normrepro import blocks, metrics, papers, report
from normrepro.record import merge_records
from normrepro.report import index, plots, ranking
from normrepro.report.entries import entries
from normrepro.report.page import page, sentence
from normrepro.report.plots import curves, panel
from normrepro.tables import Table, collect
from tests import made_up

SEEDS = made_up.SEEDS


@pytest.fixture(scope="module")
def table() -> Table:
    return papers.load_table("mabn", "table1")


def text_of(table: Table, records: dict, scale: str = "proxy") -> str:
    return blocks.markdown(page(table, scale, collect(table, scale, records)))


def row_of(text: str, label: str) -> list[str]:
    """The cells of the first line of the main grid that begins with a label."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_first_line_has_the_scale_and_the_second_says_what_it_is(table):
    lines = text_of(table, made_up.records(table)).splitlines()
    assert lines[0] == "# MABN Table 1, scale: proxy"
    assert "digits" in lines[2]
    assert sentence("proxy") in lines[2]


def test_mean_spread_seeds_and_paired_differences(table):
    text = text_of(table, made_up.records(table))
    # 8, 5, 9 has mean 7.33 and sample deviation 2.08; minus 2, 3, 4 it is 6, 2, 5: 4.33 and 2.08
    assert row_of(text, "BN (Small)")[1:3] == ["7.33 ± 2.08 (n = 3)", "+4.33 ± 2.08"]
    assert row_of(text, "BN (Regular)")[1:3] == ["**3.00 ± 1.00 (n = 3)**", ""]
    assert "4 of 4 cells; 12 of 24 declared runs" in text


def test_one_seed_has_no_spread(table):
    text = text_of(table, made_up.records(table, seeds=1))
    assert row_of(text, "BN (Small)")[1] == "8.00 (n = 1)"


def test_below_the_papers_scale_its_values_stand_apart_without_a_verdict(table):
    text = text_of(table, made_up.records(table))
    head = row_of(text, "")
    assert head[3] == "paper (full scale)"
    assert row_of(text, "BRN (Small)")[3:] == ["30.29", "+6.88"]
    assert "verdict" not in text
    assert "reproduced" not in text
    assert "difference |" not in text


def test_at_the_papers_scale_differences_and_verdicts_appear(table):
    records = made_up.records(table, "paper", 3)
    for cell in table.cells("paper", 3):
        reported = next(row.reported["error"] for row in table.rows if row.key == cell.row)
        gap = 0.2 if cell.row != "bn_small" else 0.7  # 2 x 0.3, assumed, is the limit
        records[cell.run]["metrics"]["error"] = reported + gap
    text = text_of(table, records, "paper")
    assert row_of(text, "")[3] == "paper"
    assert row_of(text, "BN (Small)")[-2:] == [
        "+0.70",
        "not reproduced (limit 0.60, p = 0.3 assumed)",
    ]
    assert row_of(text, "MABN (Small, m = 16)")[-2:] == [
        "+0.20",
        "reproduced (limit 0.60, p = 0.3 assumed)",
    ]
    few = {c.run: records[c.run] for c in table.cells("paper", 2)}
    assert row_of(text_of(table, few, "paper"), "BN (Small)")[-1] == "too few seeds (n = 2)"
    assert row_of(text_of(table, {}, "paper"), "BN (Small)")[-2:] == ["—", "not run"]


def test_a_cell_without_a_run_is_a_dash_and_is_counted(table):
    cells = [cell for cell in table.cells("proxy", SEEDS) if cell.row != "brn_small"]
    records = {cell.run: made_up.record(cell, 1.0) for cell in cells}
    text = text_of(table, records)
    assert "3 of 4 cells; 9 of 24 declared runs" in text
    assert row_of(text, "BRN (Small)")[1:3] == ["—", "—"]
    assert "paired seed" not in text.partition("## Every seed")[2]


def test_a_diverged_run_is_a_result(table):
    records = made_up.records(table)
    cells = [cell for cell in table.cells("proxy", SEEDS) if cell.row == "bn_small"]
    records[cells[0].run] = made_up.record(cells[0], None)
    text = text_of(table, records)
    assert row_of(text, "BN (Small)")[1] == "7.00 ± 2.83 (n = 2, 1 diverged)"
    assert row_of(text, "0")[2] == "-"
    assert "BN (Small), the worst in the paper, is the worst in 2 of 3 paired seeds." in text
    records |= {cell.run: made_up.record(cell, None) for cell in cells}
    assert row_of(text_of(table, records), "BN (Small)")[1] == "- (n = 3)"


def test_the_sentences_are_computed_from_the_seeds(table):
    text = text_of(table, made_up.records(table))
    assert "is the worst in 2 of 3 paired seeds." in text
    means = "BN (Regular) < MABN (Small, m = 16) < BRN (Small) < BN (Small)"
    assert f"Means over 3 paired seeds, best first: {means}." in text
    swapped = made_up.records(table)
    for cell in table.cells("proxy", SEEDS):
        if cell.row == "bn_small":
            swapped[cell.run]["metrics"]["error"] = 0.5
    text = text_of(table, swapped)
    assert "is the worst in 0 of 3 paired seeds." in text
    assert "best first: BN (Small) < BN (Regular)" in text


def test_every_seed_is_shown(table):
    text = text_of(table, made_up.records(table)).partition("## Every seed")[2]
    for seed in range(SEEDS):
        expected = [f"{made_up.ERRORS[row.key][seed]:.2f}" for row in table.rows]
        assert row_of(text, str(seed)) == [str(seed), *expected]


def test_provenance_protocol_and_command(table):
    records = made_up.records(table)
    run = table.cells("proxy", 1)[0].run
    records[run]["environment"] |= {"commit": "facade", "dirty": True}
    text = text_of(table, records)
    assert "c0ffee (11 runs), facade with uncommitted changes (1 runs)" in text
    assert "12, 120 seconds" in text
    assert "seeds: 0, 1, 2" in text
    assert "torch: 2.13.0" in text
    assert "`data=imagenet model=resnet50 recipe=mabn_imagenet` | `data=digits" in text
    assert "reproduce.py mabn table1 --scale proxy --seeds 3" in text


def test_the_same_records_give_the_same_bytes(table, tmp_path):
    records = made_up.records(table)
    for folder, own in (("a", records), ("b", dict(reversed(records.items())))):
        merge_records(tmp_path / folder / "records.jsonl", own.values())
        report.write_all([table], tmp_path / folder)
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    expected = {"README.md", "mabn_table1.proxy.md", "mabn_table1.proxy.svg"}
    assert expected | {"mabn_table1.proxy.png"} <= {name.name for name in names}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_figure_has_no_date_and_tells_rows_apart_without_color(table, tmp_path):
    every = entries(table, collect(table, "proxy", made_up.records(table)))
    assert plots.write(table, "proxy", every, tmp_path)
    svg = (tmp_path / "mabn_table1.proxy.svg").read_text()
    ElementTree.fromstring(svg)
    assert not re.search(r"<dc:date>|<dc:creator>", svg)
    assert b"Software" not in (tmp_path / "mabn_table1.proxy.png").read_bytes()
    count = len(table.rows)
    assert len({str(dash) for dash in panel.DASHES[:count]}) == count
    assert len(set(panel.MARKERS[:count])) == count


def test_the_curve_is_mean_least_and_largest_per_epoch(table):
    entry = collect(table, "proxy", made_up.records(table))["bn_regular", "error"]
    assert curves.curve(entry, "error") == [(1, 4.0, 3.0, 5.0), (2, 3.0, 2.0, 4.0)]


def test_without_records_there_is_no_figure_and_no_file(table, tmp_path):
    found = collect(table, "proxy", {})
    assert not plots.write(table, "proxy", entries(table, found), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
    assert report.write_all([table], tmp_path) == [tmp_path / "README.md", tmp_path / "index.html"]


def test_the_index_lists_every_table_with_its_state(table):
    text = blocks.markdown(index.page([index.state_of(table, made_up.records(table))]))
    line = next(line for line in text.splitlines() if "| proxy |" in line)
    assert "[MABN Table 1](mabn_table1.proxy.md)" in line
    assert "4 of 4 cells | 3 of 6 |" in line
    assert "0.03 hours" in text  # 12 runs of 10 seconds
    nothing = blocks.markdown(index.page([index.state_of(table, {})]))
    line = next(line for line in nothing.splitlines() if line.startswith("| MABN Table 1 |"))
    assert "| paper, single_gpu, proxy | no run yet |" in line


def test_a_bar_in_a_label_does_not_break_the_grid():
    assert blocks.grid(["|B|", "b"], [["1", "2"]]).splitlines()[0] == r"| \|B\| | b |"


def test_evaluations_of_one_training_compete_with_each_other():
    assert metrics.family("error_ema") == metrics.family("error_disturbed_0.1") == "error"
    assert metrics.family("top5_accuracy_rule@3") == "top5_accuracy@3"
    assert {metrics.family(name) for name in ("train_error", "best_error", "loss")} == {
        "train_error",
        "best_error",
        "loss",
    }
    table = papers.load_table("study", "table1")
    found = collect(table, "study", {c.run: made_up.record(c, 1.0) for c in table.cells("study")})
    groups = ranking.groups(table, entries(table, found))
    assert [len(group.members) for group in groups] == [6, 6, 6, 6]


def test_a_table_without_values_of_a_paper_has_no_columns_for_them():
    table = papers.load_table("study", "table1")
    records = {c.run: made_up.record(c, 1.0) for c in table.cells("study")}
    assert "paper (full scale)" not in text_of(table, records, "study")
    assert "paper (full scale)" in text_of(papers.load_table("mabn", "table1"), {})

"""Tables: their form, and that every reported value stands in its paper."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from normrepro import papers
from normrepro.config import ConfigError
from normrepro.papers.declared import check_illustrations
from normrepro.tables import collect, overlay, override_key
from tests import made_up

TABLES = papers.load_all()
PAPERS = Path(__file__).resolve().parents[2] / "shared" / "papers"
OF_PAPERS = [table for table in TABLES if table.paper != "study"]
RUNNABLE = [table for table in OF_PAPERS if not table.obstacle]


def paper_text(paper: str) -> str:
    path = PAPERS / f"{paper}.txt"
    if not path.exists():
        pytest.skip(f"the text of the paper {paper} is not at hand")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "table", [t for t in RUNNABLE if t.name.startswith("table")], ids=lambda table: table.key
)
def test_cells_of_a_table_that_differ_in_the_paper_differ_in_their_run_or_metric(table):
    cells = {(cell.row, cell.column): cell.run for cell in table.cells("paper", 1)}
    shown = {
        (cells[row.key, column.key], table.metric_of(row, column))
        for row in table.rows
        for column in table.columns
    }
    assert len(shown) == len(cells)


@pytest.mark.parametrize("table", OF_PAPERS, ids=lambda table: table.key)
def test_every_row_reports_every_column(table):
    for row in table.rows if table.name.startswith("table") and not table.describes else ():
        assert set(row.reported) == {column.key for column in table.columns}, row.key


def test_the_paper_prints_the_differences_that_mabn_table1_leads_to():
    table = papers.load_table("mabn", "table1")
    text = paper_text("mabn")
    base = table.rows[0].reported["error"]
    differences = [f"{row.reported['error'] - base:.2f}" for row in table.rows[1:]]
    assert differences == ["11.81", "6.88", "0.17"]
    assert all(f"+{difference}%" in text for difference in differences)


def test_seeds_come_in_rounds_so_that_a_stopped_table_is_even():
    table = papers.load_table("mabn", "table1")
    assert [cell.seed for cell in table.cells("proxy", 2)] == [0] * 4 + [1] * 4
    assert {cell.seed for cell in table.cells("proxy", [7])} == {7}
    assert len(table.cells("proxy")) == 4 * table.scales["proxy"].seeds


def test_later_overrides_take_the_place_of_earlier_ones():
    assert overlay([["a=1", "b.c=2"], ["a=3"], ["+d=4"]]) == ("a=3", "b.c=2", "+d=4")
    assert override_key("++b.c=x=y") == "b.c"
    assert override_key("~b.c") == "b.c"


def test_collect_takes_declared_seeds_and_those_that_follow_without_a_gap():
    table = papers.load_table("mabn", "table1")
    declared = table.scales["proxy"].seeds
    seeds = [0, declared, declared + 2]  # the last follows after a gap
    found = collect(
        table,
        "proxy",
        {cell.run: made_up.record(cell, 1.0) for cell in table.cells("proxy", seeds)},
    )
    assert {tuple(entry) for entry in found.values()} == {(0, declared)}


def declared_paper() -> dict:
    path = Path(papers.__file__).parent / "mabn.yaml"
    return OmegaConf.to_container(OmegaConf.load(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(colums={}), "unknown colums"),
        (lambda t: t.pop("metric"), "lacks metric"),
        (lambda t: t.update(better="smaller"), "lower or higher"),
        (lambda t: t.update(delta="bn_large"), "bn_large"),
        (lambda t: t["rows"]["bn_small"].update(reported={"eror": 1.0}), "eror"),
        (lambda t: t["rows"]["bn_small"].pop("label"), "lacks label"),
        (lambda t: t["scales"]["proxy"].update(rows={"bn_big": []}), "bn_big"),
        (lambda t: t["scales"]["proxy"].pop("seeds"), "lacks seeds"),
        (lambda t: t["rows"]["bn_small"].update(reported={"error": "about 3"}), "about 3"),
        (lambda t: t["rows"]["bn_small"].update(reasons={"error": "why"}), "is a number"),
        (lambda t: t["rows"]["bn_small"].update(ocr={"eror": "2"}), "eror"),
        (lambda t: t["rows"]["bn_small"].update(cells={"eror": []}), "eror"),
        (lambda t: t.update(needs="detection"), "has scales"),
        (lambda t: t.update(needs="pose", scales={}), "needs is detection or"),
        (lambda t: t.update(compare="all"), "compare is rows or columns"),
        (lambda t: t.update(plot={"kind": "pie"}), "pie"),
        (lambda t: t.update(plot={"metrics": ["error @ 3"]}), "error @ 3"),
        (lambda t: t.update(plot={"colour": "red"}), "unknown colour"),
    ],
)
def test_a_slip_in_a_declaration_is_an_error_that_names_it(change, message):
    content = declared_paper()
    change(content["tables"][1])
    with pytest.raises(ConfigError, match=message):
        papers.parse("mabn", content)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="mabn"):
        papers.load("mban")
    with pytest.raises(ConfigError, match="table1"):
        papers.load_table("mabn", "table99")
    with pytest.raises(ConfigError, match="it has: paper"):
        papers.load_table("mabn", "table1").cells("smoke")


def test_what_waits_for_a_task_has_values_and_nothing_to_run():
    declared = {
        "title": "boxes",
        "source": "Table 9",
        "needs": "detection",
        "columns": {"ap": {"label": "AP", "decimals": 1}},
        "rows": {"bn": {"label": "BN", "reported": {"ap": "36.5 ± 0.1"}}},
    }
    table = papers.parse("mabn", {"short": "MABN", "tables": {9: declared}})["table9"]
    assert table.obstacle == "not runnable yet: needs the detection task"
    assert table.scales == {}
    with pytest.raises(ConfigError, match="MABN Table 9: not runnable yet: needs the detection"):
        table.cells("paper")


def test_an_illustration_is_no_figure():
    content = {"short": "A", "figures": {1: {}}, "illustrations": {1: "a drawing"}}
    with pytest.raises(ConfigError, match="figure 1"):
        check_illustrations("a", content)
    assert check_illustrations("a", {"illustrations": {2: "why"}}) == {2: "why"}


def test_panels_have_names_and_a_row_may_differ_in_one_column():
    content = declared_paper()
    content["figures"] = {"1b": content["tables"][1]}
    content["figures"]["1b"]["rows"]["bn_small"]["cells"] = {"error": ["batch.norm=8"]}
    panel = papers.parse("mabn", content)["figure1b"]
    assert panel.label == "MABN Figure 1b"
    assert panel.key == "mabn_figure1b"
    by_row = {row.key: panel.overrides("paper", row, panel.columns[0]) for row in panel.rows}
    assert "batch.norm=8" in by_row["bn_small"]
    assert "batch.norm=2" in by_row["brn_small"]
    content["figures"] = {"1 b": content["figures"]["1b"]}
    with pytest.raises(ConfigError, match="'1 b' is no number"):
        papers.parse("mabn", content)


def test_a_figure_without_a_letter_is_all_its_panels():
    panels = papers.load_panels("xbnblock", "figure2")
    assert [table.name for table in panels] == ["figure2a", "figure2b", "figure2c"]
    assert [table.name for table in papers.load_panels("mabn", "table1")] == ["table1"]
    with pytest.raises(ConfigError, match="mabn has no 'figure9'"):
        papers.load_panels("mabn", "figure9")

"""Parts of the report: the best, verdicts, paired tests, wide tables, plots over x and layers."""

import dataclasses

import pytest

from normrepro import blocks, papers, report
from normrepro.report import grids, index, paired, plots, ranking, site, unbuilt, verdict
from normrepro.report.entries import Entry, entries
from normrepro.report.plots import curves, layers, points
from normrepro.tables import Line, Plot, Table

ROWS, COLUMNS = ("bn", "gn"), ("b2", "b4", "b8")


def table(**changes) -> Table:
    reported = {"bn": {"b2": 60.0, "b4": "70.2 ± 0.1", "b8": 75.0}, "gn": {"b2": "-", "b4": 70.2}}
    made = Table(
        **{"paper": "mabn", "short": "MABN", "name": "figure9", "title": "t", "source": "Figure 9"},
        **{"metric": "accuracy", "unit": "%", "better": "higher", "decimals": 1, "delta": None},
        **{"tolerance": None, "base": (), "scales": {}, "notes": ()},
        rows=tuple(Line(key, key.upper(), reported=reported[key]) for key in ROWS),
        columns=tuple(Line(key, key, x=float(key[1:])) for key in COLUMNS),
        plot=Plot("lines", "images", log=True),
    )
    return dataclasses.replace(made, **changes)


def record(error: float | None) -> dict:
    history = [
        {"epoch": epoch, "error": 50.0 / epoch, "esm": [1.0 * epoch, 2.0 * epoch]}
        for epoch in (1, 2, 3)
    ]
    status = "diverged" if error is None else "finished"
    measured = {} if error is None else {"error": error}
    return {"run": "r", "status": status, "metrics": measured, "history": history}


def found(errors: dict[tuple[str, str], list[float | None]]) -> dict:
    own = {(row, column): {} for row in ROWS for column in COLUMNS}
    return own | {key: dict(enumerate(map(record, given))) for key, given in errors.items()}


def entry(errors: list[float | None], reported, **changes) -> Entry:
    row = Line("bn", "BN", reported={"b2": reported})
    own = Entry(row, Line("b2", "2"), "accuracy", "%", 1, "higher", {})
    records = {seed: record(error) for seed, error in enumerate(errors)}
    return dataclasses.replace(own, records=records, **changes)


@pytest.mark.parametrize(
    ("errors", "reported", "tolerance", "expected"),
    [
        ([30.0, 30.0, 30.0], "70.2 ± 0.1", None, "reproduced (limit 0.2)"),
        ([30.0, 30.0, 30.0], "70.3 ± 0.1", None, "not reproduced (limit 0.2)"),
        ([30.0, 31.0, 29.0], "71.1 ± 0.1", None, "reproduced (limit 1.2)"),  # 2 sqrt(1/3 + .01)
        ([30.0, 30.0, 30.0], 70.5, None, "reproduced (limit 0.6, p = 0.3 assumed)"),
        ([30.0, 30.0, 30.0], 70.5, 0.2, "not reproduced (limit 0.4, p = 0.2 assumed)"),
        ([30.0, 30.0], 70.0, None, "too few seeds (n = 2)"),
        ([], 70.0, None, "not run"),
        ([30.0], None, None, ""),
        ([None, None, None], "-", None, "reproduced"),
        ([None, None, 30.0], "-", None, "not reproduced"),
        ([None, 30.0, 30.0], 70.0, None, "not reproduced (1 diverged)"),
    ],
)
def test_verdicts(errors, reported, tolerance, expected):
    assert verdict.verdict(entry(errors, reported), tolerance) == expected


def test_without_a_spread_only_points_of_percent_are_assumed():
    assert verdict.verdict(entry([1.0] * 3, 0.5, unit="s"), None) == "no spread to judge by"


def test_the_best_is_by_column_or_row_and_waits_for_all():
    every = entries(
        table(), found({("bn", "b2"): [30.0], ("gn", "b2"): [30.04], ("bn", "b4"): [9.0]})
    )
    assert ranking.best(table(), every) == {("bn", "b2"), ("gn", "b2")}  # equal in print
    of_paper = ranking.best(table(), every, of_paper=True)
    assert of_paper == {("bn", "b2"), ("bn", "b4"), ("gn", "b4"), ("bn", "b8")}
    turned = table(compare="columns")
    full = entries(turned, found({("bn", c): [10.0 * n] for n, c in enumerate(COLUMNS, 1)}))
    assert ranking.best(turned, full) == {("bn", "b2")}
    assert ranking.best(table(compare="none"), every) == set()
    apart = table(rows=tuple(dataclasses.replace(row, block=row.key) for row in table().rows))
    assert ranking.best(apart, every) == set()  # nothing to compare with


def test_paired_tests_say_nothing_of_fewer_than_three_seeds():
    own = {("bn", "b2"): [30.0, 31.0], ("gn", "b2"): [20.0, 20.0]}
    (row,) = paired.table_of(table(), entries(table(), found(own))).rows
    assert row == ["b2: GN", "BN", "2", "+10.5 ± 0.7", "2 of 2", "—", "—"]


def test_paired_tests_are_the_sign_test_and_the_t_test():
    errors = {
        ("bn", "b2"): [30.0, 31.0, 33.0, 30.0, 30.0],
        ("gn", "b2"): [20.0, 20.0, 20.0, 20.0, None],
    }
    (row,) = paired.table_of(table(), entries(table(), found(errors))).rows
    # four wins and one diverged run: 2 (C(5,5) + C(5,4)) / 2^5; differences 10, 11, 13, 10
    assert row[2:] == ["5", "+11.0 ± 1.4", "4 of 5", "0.375", "< 0.001"]
    # t = 11 / (sqrt(2) / 2) = 15.6 with 3 degrees of freedom
    assert paired.paired_t([10.0, 11.0, 13.0, 10.0]) == pytest.approx(0.00058, abs=2e-5)
    assert paired.paired_t([1.0, 1.0, 1.0]) is None
    assert paired.sign_test([0.0, 0.0, 0.0]) is None


def test_a_wide_table_is_split_and_a_narrow_one_is_not():
    every = entries(table(), found({("bn", "b2"): [30.0], ("gn", "b2"): [None]}))
    (narrow,) = grids.results(table(), "proxy", every)
    assert narrow.head[1:3] == ["b2 (%)", "b2, paper (full scale)"]
    titles = [b.text for b in grids.results(table(), "paper", every) if isinstance(b, blocks.Title)]
    assert titles == ["here", "paper", "difference and verdict"]
    text = blocks.markdown(grids.results(table(), "paper", every))
    assert "| GN | - (n = 1) | — | — |" in text
    assert "+10.0<br>too few seeds (n = 1)" in text


def test_lines_stand_at_the_columns_x_with_the_papers_points():
    every = entries(table(), found({("bn", "b2"): [30.0, 32.0], ("bn", "b8"): [20.0]}))
    (panel,) = points.lines(table(), "proxy", every)
    assert panel.series[0].points == [(2.0, 69.0, 68.0, 70.0), (8.0, 80.0, 80.0, 80.0)]
    assert panel.series[0].paper == [(2.0, 60.0), (4.0, 70.2), (8.0, 75.0)]
    assert panel.series[1].paper == [(4.0, 70.2)]  # a dash is no point
    assert panel.paper == "paper (full scale)"
    assert panel.ticks == [(2.0, "2"), (4.0, "4"), (8.0, "8")]
    turned = table(rows=table().columns, columns=table().rows)
    (bars,) = points.bars(turned, "paper", entries(turned, {("b2", "gn"): {0: record(10.0)}}))
    assert [series.label for series in bars.series] == ["BN", "GN"]
    assert bars.series[1].points == [(0.0, 90.0, 90.0, 90.0)]


def test_layers_are_lines_per_row_at_each_epoch_or_per_epoch_of_one_row():
    plot = Plot("layers", "layer", metrics=("esm",), epochs=(1, 3, 9))
    two = table(plot=plot, columns=table().columns[:1])
    every = entries(two, found({("bn", "b2"): [1.0], ("gn", "b2"): [1.0]}))
    first, third = layers.panels(two, "proxy", every)
    assert (first.title, third.title) == ("epoch 1", "epoch 3")
    assert third.series[1].points == [(0, 3.0, 3.0, 3.0), (1, 6.0, 6.0, 6.0)]
    one = dataclasses.replace(two, rows=two.rows[:1])
    (panel,) = layers.panels(one, "proxy", entries(one, found({("bn", "b2"): [1.0]})))
    assert [series.label for series in panel.series] == ["epoch 1", "epoch 3"]


def test_columns_of_the_same_runs_share_the_panel_of_layers():
    own = table(plot=Plot("layers", "layer", metrics=("esm",), epochs=(1,)))
    same = {("bn", "b2"): [1.0], ("bn", "b4"): [1.0], ("gn", "b2"): [2.0], ("gn", "b4"): [2.0]}
    assert len(layers.panels(own, "proxy", entries(own, found(same)))) == 1


def test_curves_of_compared_columns_share_a_panel():
    turned = table(compare="columns")
    every = entries(turned, found({("bn", "b2"): [1.0], ("bn", "b4"): [1.0]}))
    (panel,) = curves.panels(turned, "proxy", every)
    assert panel.title == "BN"
    assert [bool(series.points) for series in panel.series] == [True, True, False]


@pytest.mark.parametrize("kind", ["lines", "bars", "layers"])
def test_a_figure_is_drawn_once_for_the_same_numbers(kind, tmp_path, monkeypatch):
    metric = {"metrics": ("esm",), "epochs": (1,)} if kind == "layers" else {}
    own = table(plot=Plot(kind, "x", **metric))
    every = entries(own, found({("bn", "b2"): [30.0, 31.0], ("gn", "b4"): [20.0]}))
    assert plots.write(own, "proxy", every, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["mabn_figure9.proxy.png", "mabn_figure9.proxy.svg"]
    assert plots.write(own, "proxy", every, tmp_path / "again")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    drawn = []
    monkeypatch.setattr(plots, "_draw", lambda *call: drawn.append(call))
    plots.write(own, "proxy", every, tmp_path)
    assert not drawn
    plots.write(own, "proxy", entries(own, found({("bn", "b2"): [30.0]})), tmp_path)
    assert drawn


def test_the_page_of_what_waits_for_a_task_has_the_papers_values_only(tmp_path):
    waiting = table(needs="detection", rows=table().rows[:1])
    text = blocks.markdown(unbuilt.page(waiting))
    assert "Not runnable yet: needs the detection task. Nothing here was measured" in text
    assert "| BN | 60.0 | 70.2 ± 0.1 | 75.0 |" in text
    assert report.write_all([waiting], tmp_path)[0] == tmp_path / "mabn_figure9.md"
    assert "not runnable yet: needs the detection task" in (tmp_path / "README.md").read_text()


def test_the_html_holds_everything_itself(tmp_path):
    own = papers.load_table("mabn", "table1")
    state = index.State(
        own, {"proxy": {(row.key, "error"): {0: _full(row.key)} for row in own.rows}}
    )
    plots.write(own, "proxy", entries(own, state.found["proxy"]), tmp_path / "figures")
    text = site.document([state], tmp_path)
    assert "data:image/svg+xml;base64," in text
    assert "src=" not in text.replace('src="data:', "")
    assert "<b>5.00 (n = 1)</b>" in text
    assert "4 of 4 cells" in text
    assert text == site.document([state], tmp_path)


def _full(row: str) -> dict:
    about = {"run": row, "seconds": 1.0, "environment": {}, "data": {}, "config": {"seed": 0}}
    return record(5.0) | about


def test_texts_are_escaped_in_html():
    grid = blocks.Grid(["a", "b"], [["**x** < `y`", "[l](t.md)<br>"]])
    html = blocks.hypertext([grid, "", blocks.Points(["1 & 2"])])
    assert "<td><b>x</b> &lt; <code>y</code></td>" in html
    assert '<td><a href="t.md">l</a><br></td>' in html
    assert "<li>1 &amp; 2</li>" in html

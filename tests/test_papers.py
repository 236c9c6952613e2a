"""The papers' YAMLs: nothing is left out, every cell can be run, shared runs are shared."""

from functools import cache

import pytest
from omegaconf import DictConfig

from normrepro import config, papers
from normrepro.tables import Table

# What each paper numbers: tables, figures with data (panels apart), figures without.
NUMBERED = {
    "mabn": (range(1, 8), {"1a", "1b", "2", "3", "4"}, set()),
    "cbn": (range(1, 10), {"1", "3a", "3b", "4", "5a", "5b", "6"}, {2}),
    "evalnorm": (range(1, 3), {"1", "2a", "2b", "3a", "3b", "4", "5"}, set()),
    "xbnblock": (
        range(1, 7),
        {"2a", "2b", "2c", "3a", "3b", "3c", "4a", "4b", "5a", "5b", "7", "8"},
        {1, 6},
    ),
}
RUNNABLE = [table for table in papers.load_all() if not table.obstacle]
SCALES = ("paper", "single_gpu", "proxy")

# Cells, as "table row column", that are the same experiment in a paper: each line is one run.
SHARED = {
    "mabn": [
        ["table1 bn_regular error", "table2 1 error", "figure1b bn b32"],
        ["table1 bn_small error", "table2 3 error", "table4 9 error", "figure1b bn b2"],
        ["table1 brn_small error", "table2 4 error", "figure1b brn b2"],
        ["table1 mabn_small error", "table2 8 error", "table4 1 error", "figure1b mabn b2"],
        ["table2 6 error", "table4 5 error"],
        ["table2 7 error", "table4 4 error"],
    ],
    "cbn": [
        *[
            [f"table3 {row} {column}", f"figure1 {row} {column}"]
            for row in ("bn", "gn", "brn", "cbn")
            for column in ("b32", "b16", "b8", "b4", "b2", "b1")
        ],
        *[[f"table2 {row} accuracy", f"table3 {row} b32"] for row in ("bn", "gn", "cbn")],
        ["table3 bn b4", "table9 bn accuracy", "figure4 bn4 accuracy", "figure5a cbn t100"],
        ["table3 bn b4", "figure3a bn k1", "figure3a naive k1", "figure3a cbn k1"],
        ["table3 cbn b4", "table9 cbn1 accuracy", "figure4 cbn accuracy", "figure3a cbn k4"],
        ["table3 cbn b4", "figure5a cbn t25"],
        ["figure1 naive b4", "table9 naive accuracy", "figure4 naive accuracy"],
        ["figure1 naive b4", "figure3a naive k4"],
        ["table3 bn b8", "figure3a bn k2"],
        ["table3 bn b16", "figure3a bn k4", "figure4 bn16 accuracy"],
        ["table3 bn b32", "figure3a bn k8"],
    ],
    "evalnorm": [
        *[
            [f"table1 {row} {column}" for row in ("ema", "en", "rule", "offline", "ema_top5")]
            for column in ("b32", "b16", "b8", "b4", "b2")
        ],
        *[
            ["figure2b ema " + column, *[f"figure4 {row} {column}" for row in ("inverse", "en")]]
            for column in ("b2", "b4", "b8", "b16", "b32", "b64", "b128")
        ],
        ["figure2a ema b2", "figure2a en b2"],
        ["figure2b en b4", "figure5 en_4 d20", "figure5 ema_4 d20"],
        ["figure2b en b8", "figure5 en_8 d20", "figure5 ema_8 d20"],
    ],
    "xbnblock": [
        ["table1 bn accuracy", "table2 bn resnet50", "figure7 bn accuracy", "figure8 bn d5"],
        ["table1 p2 accuracy", "table2 p2 resnet50", "figure7 gn_p2 accuracy", "figure8 p2 d0"],
        ["table1 gn accuracy", "table2 gn resnet50", "figure7 gn_full accuracy"],
        ["table2 p2_d2 resnet50", "figure7 gn_d2 accuracy"],
        ["figure7 in_p2 accuracy", "figure8 in d3"],
    ],
}


@pytest.mark.parametrize("paper", NUMBERED)
def test_no_table_and_no_figure_is_left_out(paper: str) -> None:
    tables, figures, drawn = NUMBERED[paper]
    wanted = {f"table{number}" for number in tables} | {f"figure{name}" for name in figures}
    assert set(papers.load(paper)) == wanted
    assert set(papers.illustrations(paper)) == drawn


@pytest.mark.parametrize(
    ("table", "scale"),
    [(table, scale) for table in RUNNABLE for scale in table.scales],
    ids=lambda part: getattr(part, "key", part),
)
def test_every_cell_composes_and_passes_every_check(table: Table, scale: str) -> None:
    cells = table.cells(scale, 1)
    assert len(cells) == len(table.rows) * len(table.columns)
    for cell in cells:
        cfg = composed(cell.overrides)
        config.check(cfg)
        assert config.run_name(cfg) == cell.run
        assert cfg.scale.name == scale
        fits = ("digits",) if scale == "proxy" else cfg.scale.data
        assert cfg.data.name in fits


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    """Compose once in this process: tables repeat each other."""
    return config.compose(overrides)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("paper", SHARED)
def test_the_same_experiment_is_one_run(paper: str, scale: str) -> None:
    for cells in SHARED[paper]:
        assert len({run(paper, scale, *cell.split()) for cell in cells}) == 1, cells


def run(paper: str, scale: str, name: str, row: str, column: str) -> str:
    """Return the name of the first seed's run of a cell."""
    table = papers.load_table(paper, name)
    (own_row,) = [line for line in table.rows if line.key == row]
    (own_column,) = [line for line in table.columns if line.key == column]
    return run_of(table.overrides(scale, own_row, own_column))


@cache
def run_of(overrides: tuple[str, ...]) -> str:
    return config.run_name(composed(overrides))

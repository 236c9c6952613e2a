"""The table of normalizers that is read off the layers: CBN Table 1."""

import pytest

from normrepro import config
from normrepro.report import layers, unbuilt
from normrepro.tables import Line, Table, overlay

AXES = {
    ("norm=in",): (1, 1, ("spatial",)),
    ("norm=ln",): (1, 1, ("channel", "spatial")),
    ("norm=gn",): (1, 1, ("channel group", "spatial")),
    ("norm=bn",): (4, 1, ("batch", "spatial")),
    ("norm=bn", "batch.norm=8"): (8, 1, ("batch", "spatial", "GPU")),
    ("norm=cbn",): (4, 4, ("batch", "spatial", "iteration")),
}


@pytest.mark.parametrize("overrides", AXES, ids=" ".join)
def test_the_directions_of_the_statistics_are_those_of_the_paper(overrides):
    found = layers.reach(config.compose(overlay([layers.SETTING, overrides])))
    assert (found.images, found.iterations, found.axes) == AXES[overrides]


def test_the_page_is_made_once_and_again_when_the_table_changes(tmp_path, monkeypatch):
    words = {"examples": "#bs/GPU", "axis": "(batch, spatial)"}
    rows = (Line("bn", "BN", ("norm=bn",), reported=words),)
    columns = (Line("examples", "#examples"), Line("axis", "axis"))
    table = Table(
        **{
            "paper": "cbn",
            "short": "CBN",
            "name": "table1",
            "title": "layers",
            "source": "Table 1",
        },
        **{"metric": "", "unit": "", "better": "higher", "decimals": 2, "delta": None},
        **{"tolerance": None, "base": (), "rows": rows, "columns": columns, "scales": {}},
        notes=(),
        describes="layers",
    )
    path = unbuilt.write(table, tmp_path / "a.md")
    text = path.read_text()
    assert "| BN | 4 | 1 | 4 | (batch, spatial) | affine per channel | #bs/GPU | (batch" in text
    monkeypatch.setattr(layers, "reach", None)  # calling it would fail
    assert unbuilt.write(table, path).read_text() == text

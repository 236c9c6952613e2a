"""What the papers' experiments can tell, from how they were set up."""

from collections.abc import Mapping

from normrepro import papers
from normrepro.claims import check


def overrides(paper: str, table: str, row: str) -> dict[str, str]:
    """Return a row's overrides by key."""
    (line,) = (line for line in papers.load_table(paper, table).rows if line.key == row)
    return dict(o.lstrip("+").split("=", 1) for o in line.overrides)


@check
def rows_7_and_8() -> Mapping[str, float]:
    """The settings in which experiments 7 and 8 of MABN's Table 2 differ."""
    seven, eight = (overrides("mabn", "table2", row) for row in ("7", "8"))
    differ = {key for key in {*seven, *eight} if seven.get(key) != eight.get(key)}
    return {"settings_that_differ": len(differ)} | {
        f"{key.split('.')[-1]}_differs": float(key in differ)
        for key in ("norm.layer.bp", "norm.layer.momentum")
    }


@check
def gradient_batches() -> Mapping[str, float]:
    """Images per step of CBN (Table 3, 4 GPUs) at 32 and 1 per GPU, of MABN at 32 and 2."""
    cbn = {size: 4 * size for size in (32, 1)}
    return {
        "CBN_at_32": cbn[32],
        "CBN_at_1": cbn[1],
        "MABN_at_32": 8 * 32,
        "MABN_at_2": 8 * 32,
    }

"""Arithmetic of the papers' tables: sentences of the texts beside the printed values."""

from collections.abc import Mapping
from statistics import fmean

from normrepro import papers, reported
from normrepro.claims import check

# EvalNorm's rows of differences as printed: Table 1 (32, 16, 8, 4, 2 images), Table 2 by block.
PRINTED_1 = {"": (0.22, 0.63, 1.19, 2.09, 6.18), "_top5": (0.09, 0.17, 0.21, 1.05, 4.05)}
PRINTED_2 = {
    "a": (0.0, 0.1, 1.5, 0.1, 0.1, 2.0, 0.1, 0.1, 2.6),
    "b": (0.2, 0.6, 2.0, 0.1, 0.7, 3.1, 0.2, 0.9, 1.7),
    "c": (2.7, 1.5, 2.3, 3.1, 1.3, 2.1, 3.3, 1.6, 2.2),
    "d": (0.2, 1.5, 5.4, 0.2, 2.1, 7.0, 0.2, 1.8, 4.9),
}


def row(paper: str, table: str, key: str) -> dict[str, float]:
    """Return a row's reported numbers by column, those that are numbers."""
    (line,) = (line for line in papers.load_table(paper, table).rows if line.key == key)
    found = {name: reported.value(own) for name, own in line.reported.items()}
    return {name: own for name, own in found.items() if own is not None}


def minus(paper: str, table: str, one: str, other: str) -> dict[str, float]:
    """Subtract two rows, in the columns that both have, rounded as printed."""
    a, b = row(paper, table, one), row(paper, table, other)
    return {key: round(a[key] - b[key], 4) for key in a if key in b}


@check
def mabn_differences() -> Mapping[str, float]:
    """Table 1 against BN at 32; rows of Table 4 that are rows of Table 2; mIoU of Table 7."""
    small = {
        name: minus("mabn", "table1", f"{name}_small", "bn_regular")["error"]
        for name in ("bn", "brn", "mabn")
    }
    same = {"1": "8", "4": "7", "5": "6", "9": "3"}
    apart = max(
        abs(row("mabn", "table4", a)["error"] - row("mabn", "table2", b)["error"])
        for a, b in same.items()
    )
    miou = minus("mabn", "table7", "mabn", "bn")["miou"]
    return small | {"same_experiments_of_tables_2_and_4": apart, "mIoU_over_BN": miou}


@check
def cbn_gn_short_of_bn() -> Mapping[str, float]:
    """BN minus GN in Table 2."""
    return {"BN_minus_GN": minus("cbn", "table2", "bn", "gn")["accuracy"]}


@check
def cbn_over_gn() -> Mapping[str, float]:
    """CBN minus GN over the batches of Table 3."""
    return {"mean_gap": fmean(minus("cbn", "table3", "cbn", "gn").values())}


@check
def cbn_gn_drop() -> Mapping[str, float]:
    """BN at 32 minus GN over the architectures of Table 4."""
    table = papers.load_table("cbn", "table4")
    rows = [row("cbn", "table4", line.key) for line in table.rows]
    return {"mean_drop": fmean(own["bn32"] - own["gn"] for own in rows)}


@check
def cbn_brn_on_coco() -> Mapping[str, float]:
    """BRN's AP with a frozen backbone (Table 5) against BN, syncBN and CBN."""
    return {
        f"against_{name}": minus("cbn", "table5", "fixed_brn", f"fixed_{name}")["ap"]
        for name in ("bn", "syncbn", "cbn")
    }


@check
def cbn_costs() -> Mapping[str, float]:
    """Memory and operations of Table 8, in percent more than BN and GN."""
    own = row("cbn", "table8", "cbn")
    return {
        f"{what}_over_{name.upper()}": 100 * (own[what] / row("cbn", "table8", name)[what] - 1)
        for what in ("memory", "flops")
        for name in ("bn", "gn")
    }


@check
def cbn_orders() -> Mapping[str, float]:
    """Naive over BN, first order over naive, second over first (Table 9)."""
    pairs = {"naive": "bn", "cbn1": "naive", "cbn2": "cbn1"}
    return {f"{a}_minus_{b}": minus("cbn", "table9", a, b)["accuracy"] for a, b in pairs.items()}


@check
def falls_from_32_to_2() -> Mapping[str, float]:
    """How far BN falls from batches of 32 to 2, by paper."""
    cbn, en = row("cbn", "table3", "bn"), row("evalnorm", "table1", "ema")
    return {
        "CBN_ResNet_18": cbn["b32"] - cbn["b2"],
        "EvalNorm_ResNet_50": en["b32"] - en["b2"],
        "MABN_ResNet_50": minus("mabn", "table1", "bn_small", "bn_regular")["error"],
    }


@check
def en_table_1() -> Mapping[str, float]:
    """EN minus EMA beside the printed differences: how many of ten are off."""
    off = 0
    for rest, printed in PRINTED_1.items():
        found = minus("evalnorm", "table1", f"en{rest}", f"ema{rest}")
        own = [found[f"b{size}"] for size in (32, 16, 8, 4, 2)]
        off += sum(abs(a - b) > 0.005 for a, b in zip(own, printed, strict=True))
    return {"differences_off": off}


@check
def en_gains_at_2() -> Mapping[str, float]:
    """EN minus EMA at 2 images in Table 1, and from 32 to 4 images."""
    en = row("evalnorm", "table1", "en")
    return {
        "top_1": minus("evalnorm", "table1", "en", "ema")["b2"],
        "top_5": minus("evalnorm", "table1", "en_top5", "ema_top5")["b2"],
        "EN_fall_from_32_to_4": en["b32"] - en["b4"],
    }


@check
def en_behind_gn() -> Mapping[str, float]:
    """GN minus EN and EN-Offline at 2 images."""
    return {
        "EN": minus("evalnorm", "table1", "gn", "en")["b2"],
        "EN_Offline": minus("evalnorm", "table1", "gn", "offline")["b2"],
        "EMA": minus("evalnorm", "table1", "gn", "ema")["b2"],
    }


@check
def en_rule_at_32() -> Mapping[str, float]:
    """The rule 1/B^2 minus EN at 32 and at 2 images."""
    gap = minus("evalnorm", "table1", "rule", "en")
    return {"at_32": gap["b32"], "at_2": gap["b2"]}


@check
def en_table_2() -> Mapping[str, float]:
    """Differences of Table 2 that are off the print; the least gain from random weights at 2."""
    off, worst = 0, 0.0
    columns = [f"{ap}_{size}" for ap in ("ap", "ap50", "ap75") for size in (8, 4, 2)]
    for block, printed in PRINTED_2.items():
        gains = minus("evalnorm", "table2", f"{block}_en", f"{block}_ema")
        gaps = [abs(gains[c] - p) for c, p in zip(columns, printed, strict=True)]
        off, worst = off + sum(gap > 0.05 for gap in gaps), max(worst, *gaps)
    start = minus("evalnorm", "table2", "a_en", "a_ema")
    least = min(start[f"{ap}_2"] for ap in ("ap", "ap50", "ap75"))
    return {"differences_off": off, "largest": worst, "least_gain_at_2": least}


@check
def xbn_gains() -> Mapping[str, float]:
    """XBNBlock minus BN: ImageNet, Faster R-CNN, Mask R-CNN, small batch."""
    four = minus("xbnblock", "table4", "p2", "bn")
    parts = {
        "ImageNet": minus("xbnblock", "table2", "p2", "bn"),
        "Faster_R-CNN": minus("xbnblock", "table5", "p2", "bn"),
        "boxes": {k: v for k, v in four.items() if k.endswith("box")},
        "masks": {k: v for k, v in four.items() if k.endswith("mask")},
    }
    found = {}
    for name, gains in parts.items():
        found[f"{name}_from"], found[f"{name}_to"] = min(gains.values()), max(gains.values())
    return found | {"2_images": minus("xbnblock", "table6", "p2", "bn")["bs2"]}


@check
def xbn_gn() -> Mapping[str, float]:
    """GN in every place of ResNet-50: Tables 1 and 2, and how far the text's 75.63 is off."""
    tables = row("xbnblock", "table1", "gn")["accuracy"], row("xbnblock", "table2", "gn")
    return {
        "table_1": tables[0],
        "table_2": tables[1]["resnet50"],
        "tables_minus_text": round(tables[0] - 75.63, 4),
    }

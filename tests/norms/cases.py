"""The layers, each beside its reference with the same options, and the batches to try them on."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from normrepro import norms
from tests import oracles

STEPS = 32
Build = Callable[..., Any]


class Case(NamedTuple):
    """One layer with its options, its reference with the same, and the step to start from."""

    layer: Build
    options: dict[str, Any]
    oracle: Build
    same: Mapping[str, Any] = MappingProxyType({})
    start: int = 0
    whole: bool = False  # one group per replica only


class Layout(NamedTuple):
    """A batch and how it is cut."""

    shape: tuple[int, ...]
    replicas: int = 1
    group: int | None = None
    channels_last: bool = False


RENORM = {"r_max": 1.5, "d_max": 0.4}
POINTS = (0.2, 0.8, 0.5)
CONSTANT = {"limits": oracles.constant_limits(1.5, 0.4)}
RAMPS = {"limits": oracles.ramped_limits(1.5, 0.4)}
SHORT = {"memory": 3, "clip": 1.2}

CASES = {
    "bn": Case(norms.BatchNorm, {}, oracles.BatchNorm),
    "bn-momentum": Case(norms.BatchNorm, {"momentum": 0.5}, oracles.BatchNorm, {"momentum": 0.5}),
    "brn": Case(norms.BatchRenorm, RENORM, oracles.BatchRenorm, CONSTANT),
    "brn-var": Case(
        norms.BatchRenorm, {**RENORM, "ema": "var"}, oracles.BatchRenorm, {**CONSTANT, "ema": "var"}
    ),
    "brn-ioffe": Case(
        norms.BatchRenorm, {**RENORM, "limits": "ioffe"}, oracles.BatchRenorm, RAMPS, start=15000
    ),
    "brn-ioffe-start": Case(
        norms.BatchRenorm, {**RENORM, "limits": "ioffe"}, oracles.BatchRenorm, RAMPS, start=4990
    ),
    "brn-fractions": Case(
        norms.BatchRenorm,
        {**RENORM, "limits": "fractions", "starts": POINTS, "run_length": STEPS},
        oracles.BatchRenorm,
        {"limits": oracles.ramped_limits(1.5, 0.4, POINTS, run=STEPS)},
    ),
    "mabn": Case(norms.MABN, SHORT, oracles.MABN, SHORT),
    "mabn-late": Case(
        norms.MABN,
        {**SHORT, "momentum": 0.1, "memory": 5, "renorm_from": 9},
        oracles.MABN,
        {**SHORT, "momentum": 0.1, "memory": 5, "renorm_from": 9},
    ),
    "mabn-official": Case(
        norms.MABN, {**SHORT, "variant": "official"}, oracles.OfficialMABN, SHORT
    ),
    "mabn-official-100": Case(
        norms.MABN, {**SHORT, "variant": "official"}, oracles.OfficialMABN, SHORT, start=90
    ),
    "mabn-root": Case(
        norms.MABN,
        {**SHORT, "variant": "official_root"},
        oracles.OfficialRootMABN,
        SHORT,
        start=90,
        whole=True,
    ),
    "mabn-root-1000": Case(
        norms.MABN,
        {**SHORT, "variant": "official_root"},
        oracles.OfficialRootMABN,
        SHORT,
        start=990,
        whole=True,
    ),
    "mabn-root-memory": Case(
        norms.MABN,
        {**SHORT, "memory": 110, "variant": "official_root"},
        oracles.OfficialRootMABN,
        {**SHORT, "memory": 110},
        start=100,
        whole=True,
    ),
}

LAYOUTS = [
    Layout((8, 4)),
    Layout((8, 4), group=2),
    Layout((8, 4), group=4, replicas=2),
    Layout((9, 3), group=3),
    Layout((8, 4, 5), group=2),
    Layout((8, 4, 5), group=4, replicas=2),
    Layout((4, 4, 3, 2), group=1),
    Layout((8, 4, 3, 2), group=1, replicas=2),
    Layout((8, 4, 3, 2), group=2, replicas=2),
    Layout((8, 4, 3, 2), group=4, channels_last=True),
    Layout((12, 4, 3, 2), group=6, replicas=2, channels_last=True),
    Layout((4, 4, 2, 3, 2), group=2),
    Layout((4, 4, 2, 3, 2), replicas=2),
]


def fits(case: Case, layout: Layout) -> bool:
    share = layout.shape[0] // layout.replicas
    return not case.whole or layout.group in (None, share)


PAIRS = [
    pytest.param(
        case,
        layout,
        id=f"{name}-{'x'.join(map(str, layout.shape))}-R{layout.replicas}-B{layout.group}",
    )
    for name, case in CASES.items()
    for layout in LAYOUTS
    if fits(case, layout)
]

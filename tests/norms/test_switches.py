"""MABN's ablations (Tables 2, 4): both structures with every statistic in FP and BP."""

import pytest
import torch

from normrepro import norms
from tests import oracles
from tests.norms.cases import STEPS, Layout
from tests.norms.test_exact import batch, change_affine, run
from tests.oracles.checks import close

LAYOUTS = [
    Layout((8, 4), group=2, replicas=2),
    Layout((8, 4, 3, 2), group=2),
    Layout((8, 4, 3, 2), group=4, replicas=2, channels_last=True),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("bp", ["batch", "sma", "ema"])
@pytest.mark.parametrize("fp", ["batch", "sma", "ema"])
@pytest.mark.parametrize("structure", ["modified", "vanilla"])
def test_a_structure_with_moving_statistics(
    structure: str, fp: str, bp: str, layout: Layout
) -> None:
    options = {"group": layout.group, "replicas": layout.replicas, "memory": 3, "momentum": 0.1}
    layer = norms.MABN(layout.shape[1], clip=1.3, structure=structure, fp=fp, bp=bp, **options)
    oracle = oracles.MovingNorm(
        layout.shape[1],
        vanilla=structure == "vanilla",
        forward_by=fp,
        backward_by=bp,
        r_max=1.3,
        d_max=1.3,
        **options,
    )
    layer = layer.double()
    for step in range(STEPS):
        change_affine(layer, oracle, step)
        x, gz = batch(layout, step)
        with norms.step(layer):
            got = run(layer, x, gz)
        wanted = (oracle.forward(x), *oracle.backward(gz))
        oracle.commit()
        for actual, expected in zip(got, wanted, strict=True):
            close(actual, expected, 1e-9)
    x, _ = batch(layout, 99)
    close(layer.eval()(x), oracle.evaluate(x), 1e-9)


def test_unknown_switches_are_refused() -> None:
    for wrong in ({"fp": "mean"}, {"bp": "none"}, {"structure": "new"}, {"variant": "fast"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            norms.MABN(4, **wrong)
    with pytest.raises(ValueError, match="only the modified structure"):
        norms.MABN(4, variant="official", structure="vanilla")


def test_psi_of_a_step_that_overflowed_is_not_kept_by_an_ema() -> None:
    layer = norms.MABN(2, group=2, bp="ema")
    with norms.step(layer):
        layer(torch.randn(4, 2)).mul(float("inf")).sum().backward()
    assert layer.psi_ema.isfinite().all()

"""The ablation reference under test: named methods are its corners; it follows its history."""

import pytest
import torch

from tests import oracles
from tests.oracles.checks import broadcast, close, draw, prepared
from tests.test_oracles_mabn import group_means, history, repeat
from tests.test_oracles_web import agree

WAYS = ["batch", "sma", "ema"]


def build(vanilla: bool, forward_by: str, backward_by: str, **options: float) -> oracles.MovingNorm:
    options = {"memory": 3, "r_max": 1.3, "d_max": 0.3} | options
    return prepared(
        oracles.MovingNorm(
            4,
            group=2,
            vanilla=vanilla,
            forward_by=forward_by,
            backward_by=backward_by,
            **options,
        )
    )


def test_vanilla_batch_statistics_are_batch_norm() -> None:
    agree(build(True, "batch", "batch"), prepared(oracles.BatchNorm(4, group=2)), (8, 4, 3))


def test_vanilla_with_ema_in_forward_is_renorm() -> None:
    limits = oracles.constant_limits(1.3, 0.3)
    renorm = oracles.BatchRenorm(4, group=2, momentum=0.02, limits=limits, ema="var")
    agree(build(True, "ema", "batch"), prepared(renorm), (8, 4, 3))


def test_modified_batch_statistics_are_mabn_without_moving_parts() -> None:
    plain = prepared(oracles.MABN(4, group=2, memory=1, clip=1.0))
    agree(build(False, "batch", "batch"), plain, (8, 4, 3))


def test_modified_with_ema_and_sma_is_mabn() -> None:
    mabn = prepared(oracles.MABN(4, group=2, memory=3, clip=1.3))
    agree(build(False, "ema", "sma"), mabn, (8, 4, 3))


def test_modified_with_sma_twice_is_the_released_code_without_r() -> None:
    """From its second step on; one group per step makes the first one the same too."""
    official = prepared(oracles.OfficialMABN(4, group=8, memory=3))
    moving = build(False, "sma", "sma")
    moving.group = 8
    agree(moving, official, (8, 4, 3))


@pytest.mark.parametrize("backward_by", WAYS)
@pytest.mark.parametrize("forward_by", WAYS)
@pytest.mark.parametrize("vanilla", [True, False])
def test_every_switch_follows_its_history(vanilla: bool, forward_by: str, backward_by: str) -> None:
    oracle = build(vanilla, forward_by, backward_by, momentum=0.2)
    lists = {name: torch.empty(0, 4).double() for name in ("mean", "spread", "g", "psi")}
    ema = {name: torch.full((4,), float(name == "spread")).double() for name in lists}
    for step in range(5):
        x, gz = draw(8, 4, 3, seed=step), draw(8, 4, 3, seed=step + 50)
        indices = range(4 * step, 4 * step + 4)

        def record(name: str, values: torch.Tensor) -> None:
            lists[name] = torch.cat([lists[name], values])

        def recent(name: str, way: str, indices: range = indices) -> torch.Tensor:
            length = 3 if way == "sma" else 1
            return torch.stack([history(lists[name], i, length) for i in indices])

        means = group_means(x, 2) * vanilla
        record("mean", means)
        record("spread", group_means(x**2, 2) - means**2)
        center, spread = (recent(name, forward_by) for name in ("mean", "spread"))
        sigma = (spread + 1e-5).sqrt()
        y = (x - repeat(center, 2, x)) / repeat(sigma, 2, x)
        r, d = torch.ones_like(sigma), torch.zeros_like(sigma)
        if forward_by == "ema":
            scale = (ema["spread"] + 1e-5).sqrt()
            r = (sigma / scale).clamp(1 / 1.3, 1.3)
            d = ((center - ema["mean"]) / scale).clamp(-0.3, 0.3)
        xhat = repeat(r, 2, x) * y + repeat(d, 2, x)
        close(oracle.forward(x), broadcast(oracle.gamma, x) * xhat + broadcast(oracle.beta, x))

        gy = repeat(r, 2, x) * broadcast(oracle.gamma, x) * gz
        record("g", group_means(gy, 2) * vanilla)
        record("psi", group_means(y * gy, 2))
        for name, values in (("mean", center), ("spread", spread)):
            ema[name] = 0.8 * ema[name] + 0.2 * values.mean(0)
        for name in ("g", "psi"):
            ema[name] = 0.8 * ema[name] + 0.2 * lists[name][-4:].mean(0)
        moving = backward_by == "ema"
        g, psi = (ema[n].expand(4, 4) if moving else recent(n, backward_by) for n in ("g", "psi"))
        wanted = (gy - repeat(g, 2, x) - y * repeat(psi, 2, x)) / repeat(sigma, 2, x)
        close(oracle.backward(gz, scale=1.0)[0], wanted)
        oracle.commit()
    close(oracle.population(0)[1], (ema["spread"] + 1e-5).sqrt())

"""The MABN references under test: autograd, whole-history formulas, thresholds."""

import pytest
import torch
from torch import Tensor

from tests import oracles
from tests.oracles.checks import (
    SHAPES,
    advance,
    broadcast,
    close,
    differentiate,
    draw,
    moments,
    prepared,
    same,
)


def modified(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """X / chi_B of eq. 15 and chi_B, differentiable."""
    mean, var = moments(x, group)
    chi = (var + mean**2 + 1e-5).sqrt()
    return x / chi, chi


@pytest.mark.parametrize("shape", SHAPES)
def test_mabn_with_memory_of_one_is_modified_batch_norm(shape: tuple[int, ...]) -> None:
    """Psi is then the group's own, and the gradient is autograd's with r constant (eqs. 16, 19)."""
    oracle = prepared(oracles.MABN(4, group=2, memory=1, clip=1.3))
    for step in range(3):
        x, gz = draw(*shape, seed=step), draw(*shape, seed=step + 50)
        chi_ema = broadcast((oracle.running_var[0] + 1e-5).sqrt(), x)
        r = (modified(x, 2)[1] / chi_ema).clamp(1 / 1.3, 1.3)

        def stopped(x: Tensor, gamma: Tensor, beta: Tensor, r: Tensor = r) -> Tensor:
            return broadcast(gamma, x) * r * modified(x, 2)[0] + broadcast(beta, x)

        same(oracle, x, gz, differentiate(stopped, oracle, x, gz))
        oracle.commit()


def history(values: Tensor, last: int, memory: int) -> Tensor:
    """Mean of the `memory` entries that end with index `last`, of those that exist."""
    return values[max(0, last - memory + 1) : last + 1].mean(0)


def group_means(values: Tensor, group: int) -> Tensor:
    """Mean over images and positions of consecutive groups: (G, C)."""
    return values.view(-1, group, *values.shape[1:]).transpose(1, 2).flatten(2).mean(2)


def repeat(values: Tensor, group: int, x: Tensor) -> Tensor:
    """(G, C) as large as x."""
    return values.repeat_interleave(group, 0).view(*x.shape[:2], *(1,) * (x.dim() - 2))


@pytest.mark.parametrize("memory", [3, 4, 7])
@pytest.mark.parametrize("official", [False, True])
def test_mabn_windows_are_slices_of_the_whole_history(memory: int, official: bool) -> None:
    """Replay 6 steps of 4 groups from complete lists of x^2 and Psi since the start."""
    kind = oracles.OfficialMABN if official else oracles.MABN
    oracle = prepared(kind(3, group=2, memory=memory, clip=1.4, renorm_from=3))
    x2, psi = torch.empty(0, 3).double(), torch.empty(0, 3).double()
    ema = torch.ones(3).double()
    for step in range(6):
        x, gz = draw(8, 3, 2, seed=step), draw(8, 3, 2, seed=step + 50)
        indices = range(4 * step, 4 * step + 4)
        x2 = torch.cat([x2, group_means(x**2, 2)])
        moving = official and step > 0
        used = torch.stack([history(x2, i, memory if moving else 1) for i in indices])
        chi = (used + 1e-5).sqrt()
        r = (chi / (ema + 1e-5).sqrt()).clamp(1 / 1.4, 1.4) if step >= 2 else torch.ones_like(chi)
        y, gy = x / repeat(chi, 2, x), repeat(r, 2, x) * broadcast(oracle.gamma, x) * gz
        psi = torch.cat([psi, group_means(y * gy, 2)])
        own = official and step == 0
        psibar = torch.stack([history(psi, i, 1 if own else memory) for i in indices])
        z = broadcast(oracle.gamma, x) * repeat(r, 2, x) * y + broadcast(oracle.beta, x)
        close(oracle.forward(x), z)
        close(oracle.backward(gz)[0], (gy - y * repeat(psibar, 2, x)) / repeat(chi, 2, x))
        oracle.commit()
        ema = used.mean(0) if own else 0.98 * ema + 0.02 * used.mean(0)
    close(oracle.buffers()["running_var"], ema)
    close(oracle.buffers()["psi_window"][0], psi[-memory:])
    assert oracle.buffers()["psi_count"].tolist() == [memory]
    assert oracle.buffers()["iters"] == 6


def test_mabn_window_is_padded_in_front() -> None:
    oracle = oracles.OfficialMABN(2, group=2, memory=3, replicas=2)
    x = draw(4, 2)
    advance(oracle, x, draw(4, 2, seed=1))
    window = oracle.buffers()["x2_window"]
    assert window.shape == (2, 1, 3, 2)
    close(window[:, 0, 2], (x**2).view(2, 2, 2).mean(1))
    assert not window[:, 0, :2].any()
    assert oracle.buffers()["x2_count"].tolist() == [1]


def test_mabn_windows_hold_the_unscaled_loss() -> None:
    plain, scaled = (prepared(oracles.MABN(3, memory=4)) for _ in range(2))
    for step in range(5):
        x, gz = draw(4, 3, seed=step), draw(4, 3, seed=step + 50)
        plain.forward(x)
        scaled.forward(x)
        factor = 2.0**step
        close(scaled.backward(gz * factor, scale=factor)[0], plain.backward(gz)[0] * factor)
        plain.commit()
        scaled.commit()
    close(scaled.buffers()["psi_window"], plain.buffers()["psi_window"])


def test_official_root_switches_at_its_three_thresholds() -> None:
    """Windows from it > m and it >= 100, r from it = 1001, EMA of what the forward used."""
    oracle = oracles.OfficialRootMABN(2, memory=3)
    uses_window, uses_r = [], []
    ema = torch.ones(2).double()
    last: list[Tensor] = []
    oracle.iters = start = 95
    for it in range(start + 1, 1004):
        x = draw(3, 2, seed=it)
        last = [*last, (x**2).mean(0)][-3:]
        expected = torch.stack(last).mean(0) if it >= 100 else last[-1]
        oracle.forward(x)
        oracle.backward(x)
        uses_window.append(not torch.allclose(oracle.kept[0]["x2"], last[-1], rtol=1e-12))
        uses_r.append(bool((oracle.kept[0]["r"] != 1).any()))
        close(oracle.kept[0]["x2"], expected)
        oracle.commit()
        ema = 0.98 * ema + 0.02 * expected
    assert uses_window.index(True) + start + 1 == 100
    assert uses_r.index(True) + start + 1 == 1001
    close(oracle.buffers()["running_var"], ema)
    short = oracles.OfficialRootMABN(2, memory=120)
    short.iters = 119
    assert not short.x2_is_moving()
    short.iters = 120
    assert short.x2_is_moving()


def test_weight_centring_is_exact() -> None:
    weight = draw(4, 3, 2, 2)
    close(oracles.centred(weight), weight - weight.mean((1, 2, 3), keepdim=True))
    assert oracles.centred(draw(4, 1, 1, 1)).equal(draw(4, 1, 1, 1))

"""Identities between the references: the degenerate cases in which one method becomes another."""

import torch

from tests import oracles
from tests.oracles.checks import SHAPES, advance, close, draw, moments, prepared


def agree(first: oracles.Oracle, second: oracles.Oracle, shape: tuple[int, ...]) -> None:
    """Both oracles give the same outputs and gradients over three steps."""
    for step in range(3):
        x, gz = draw(*shape, seed=step), draw(*shape, seed=step + 50)
        close(first.forward(x), second.forward(x))
        for one, other in zip(first.backward(gz), second.backward(gz), strict=True):
            close(one, other)
        first.commit()
        second.commit()


def test_renorm_without_room_is_batch_norm() -> None:
    limits = oracles.constant_limits(1.0, 0.0)
    for shape in SHAPES:
        renorm = prepared(oracles.BatchRenorm(4, group=2, limits=limits))
        agree(renorm, prepared(oracles.BatchNorm(4, group=2)), shape)


def test_renorm_without_limits_is_ema_normalization() -> None:
    """The forward, and M-14: the backward keeps batch g and Psi at the EMA's scale."""
    oracle = prepared(oracles.BatchRenorm(4, group=2, limits=oracles.constant_limits(1e9, 1e9)))
    for step in range(4):
        x, gz = draw(8, 4, 3, seed=step), draw(8, 4, 3, seed=step + 50)
        close(oracle.forward(x), oracle.evaluate(x))
        mu, var = moments(x, 2)
        y = (x - mu) / (var + 1e-5).sqrt()
        g = oracle.gamma[:, None] * gz
        divisor = oracle.population(0)[1][:, None]
        oracle.forward(x)
        wanted = (g - moments(g, 2)[0] - y * moments(g * y, 2)[0]) / divisor
        close(oracle.backward(gz)[0], wanted)
        oracle.commit()


def test_mabn_clip_of_one_forces_r_to_one() -> None:
    """M-13c; with memory one it is then modified batch norm whatever the EMA holds."""
    clipped = prepared(oracles.MABN(4, group=2, memory=1, clip=1.0))
    late = prepared(oracles.MABN(4, group=2, memory=1, renorm_from=99))
    agree(clipped, late, (8, 4, 3))


def test_mabn_without_clip_is_ema_scaling() -> None:
    """M-13b."""
    for kind in (oracles.MABN, oracles.OfficialMABN):
        oracle = prepared(kind(4, group=2, memory=3, clip=1e9, renorm_from=1))
        for step in range(4):
            x = draw(8, 4, 3, seed=step)
            close(oracle.forward(x), oracle.evaluate(x))
            oracle.forward(x)
            oracle.backward(draw(8, 4, 3, seed=step + 50))
            oracle.commit()


def test_modified_batch_norm_of_centered_inputs_is_batch_norms_forward() -> None:
    x = draw(8, 4, 3)
    x = x - moments(x, 2)[0]
    modified = prepared(oracles.MABN(4, group=2, memory=1, clip=1.0))
    close(modified.forward(x), prepared(oracles.BatchNorm(4, group=2)).forward(x))


def test_one_group_of_channels_is_layer_norm_and_all_are_instance_norm() -> None:
    for shape in SHAPES[1:]:
        agree(oracles.GroupNorm(4, 1), oracles.LayerNorm(4), shape)
        agree(oracles.GroupNorm(4, 4), oracles.InstanceNorm(4), shape)
    x = draw(8, 4, 3, 2)
    layer = torch.nn.LayerNorm((4, 3, 2), elementwise_affine=False).double()
    close(oracles.LayerNorm(4).forward(x), layer(x))


def test_instance_norm_is_batch_norm_of_single_images() -> None:
    for shape in SHAPES[1:]:
        single = prepared(oracles.BatchNorm(4, group=1))
        agree(prepared(oracles.InstanceNorm(4)), single, shape)


def test_synchronized_devices_are_one_joined_batch() -> None:
    """Also ghost batch norm whose group is the whole batch."""
    joined = prepared(oracles.BatchNorm(4))
    agree(prepared(oracles.BatchNorm(4, group=8, replicas=4)), joined, (8, 4, 3))
    agree(prepared(oracles.BatchNorm(4, group=8)), prepared(oracles.BatchNorm(4)), (8, 4, 3))


def test_replicas_are_separate_layers() -> None:
    """Two devices in one reference are two references that see half the batch each."""
    limits = oracles.constant_limits(1.5, 0.5)
    kinds = {
        oracles.BatchNorm: {},
        oracles.BatchRenorm: {"limits": limits},
        oracles.MABN: {"memory": 3},
        oracles.OfficialMABN: {"memory": 3, "renorm_from": 2},
    }
    for kind, options in kinds.items():
        whole = prepared(kind(4, group=2, replicas=2, **options))
        halves = [prepared(kind(4, group=2, **options)) for _ in range(2)]
        for step in range(4):
            x, gz = draw(8, 4, 3, seed=step), draw(8, 4, 3, seed=step + 50)
            advance(whole, x, gz)
            for half, xs, gzs in zip(halves, x.split(4), gz.split(4), strict=True):
                advance(half, xs, gzs)
        state, parts = whole.buffers(), [half.buffers() for half in halves]
        for name, value in state.items():
            counts = not value.is_floating_point()
            expected = parts[0][name] if counts else torch.stack([part[name] for part in parts])
            assert value.equal(expected), name


def test_gradients_of_centered_norms_are_orthogonal_to_their_statistics() -> None:
    """M-2: sum dX = 0 and sum Y dX = 0; without centring only the second."""
    x, gz = draw(8, 4), draw(8, 4, seed=1)
    vanilla = oracles.BatchNorm(4, eps=0.0)
    modified = oracles.MABN(4, memory=1, clip=1.0, eps=0.0)
    y, z = vanilla.forward(x), modified.forward(x)
    gx, gm = vanilla.backward(gz)[0], modified.backward(gz)[0]
    for null in (gx.sum(0), (y * gx).sum(0), (z * gm).sum(0)):
        assert null.abs().max() < 1e-12
    assert gm.sum(0).abs().min() > 1e-3

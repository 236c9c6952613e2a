"""Mixup and dropout: right in themselves, and the same whatever processes share the batch."""

import random
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from normrepro.data.base import generator, seed_of
from normrepro.data.mixup import mixup
from normrepro.models.dropout import SharedDropout, dropouts, reseed, share_dropout
from normrepro.tasks import Classification
from normrepro.training.chance import Chance
from tests.conftest import command, environment, only_run, weights


def batch(images: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(images, 2, 3, 3, generator=draw, dtype=torch.float64)
    return x, torch.randint(5, (images,), generator=draw)


def slow_mixup(x, y, share, seed, step):
    """Image by image, from the definition."""
    images, targets = torch.zeros_like(x), torch.zeros(len(x), 5, dtype=x.dtype)
    for i in range(len(x)):
        device = i // share
        key = (seed, "mixup", step, device)
        weight = random.Random(seed_of(*key)).betavariate(0.2, 0.2)
        order = torch.randperm(share, generator=generator(*key)).tolist()
        partner = device * share + order[i % share]
        images[i] = weight * x[i] + (1 - weight) * x[partner]
        targets[i, y[i]] += weight
        targets[i, y[partner]] += 1 - weight
    return images, targets


def test_mixup_is_its_definition_within_each_devices_share():
    x, y = batch()
    images, targets = mixup(x, y, 5, 0.2, share=4, first=0, seed=7, step=30)
    expected, wanted = slow_mixup(x, y, 4, 7, 30)
    torch.testing.assert_close(images, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(targets, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(targets.sum(1), torch.ones(12, dtype=x.dtype))
    assert not torch.equal(mixup(x, y, 5, 0.2, 4, 0, 7, 31)[0], images)
    assert not torch.equal(mixup(x, y, 5, 0.2, 4, 0, 8, 30)[0], images)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_mixup_does_not_depend_on_the_processes(world):
    x, y = batch()
    whole = mixup(x, y, 5, 0.2, share=3, first=0, seed=7, step=2)
    parts = [
        mixup(px, py, 5, 0.2, share=3, first=rank * 4 // world, seed=7, step=2)
        for rank, (px, py) in enumerate(zip(x.chunk(world), y.chunk(world), strict=True))
    ]
    for i in (0, 1):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])


def test_the_weights_are_of_the_beta_distribution():
    x, y = torch.zeros(4000, 1), torch.zeros(4000, dtype=torch.long)
    x[1::2], y[1::2] = 1.0, 1  # devices of two: a partner is the other image, or itself
    images, _ = mixup(x, y, 2, 0.2, share=2, first=0, seed=0, step=0)
    first = images[0::2, 0]  # 1 - weight, or 0 where nobody changed places
    drawn = 1 - first[first > 0]
    assert drawn.mean() == pytest.approx(0.5, abs=0.05)  # standard error 0.013
    assert drawn.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)


def test_the_loss_takes_blended_targets():
    logits = nn.Identity()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    hard = nn.functional.one_hot(y, 5).float()
    task = Classification(0.1)
    torch.testing.assert_close(task.loss(logits, x, hard), task.loss(logits, x, y))
    other = nn.functional.one_hot((y + 1) % 5, 5).float()
    mixed = task.loss(logits, x, 0.3 * hard + 0.7 * other)
    expected = 0.3 * task.loss(logits, x, y) + 0.7 * task.loss(logits, x, (y + 1) % 5)
    torch.testing.assert_close(mixed, expected)


# Dropout -------------------------------------------------------------------------------------


def test_dropout_drops_its_share_and_keeps_the_mean():
    layer, x = SharedDropout(0.3), torch.ones(200, 300)
    out = layer(x)
    assert ((out == 0).float().mean() - 0.3).abs() < 0.01
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert torch.equal(layer(x), out)  # the same step: recomputation sees the same mask
    assert layer.eval()(x) is x


def test_masks_are_of_seed_step_and_layer_alone():
    net = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    layers = dropouts(share_dropout(net, 0, 1))
    assert len(layers) == 2
    x = torch.ones(8, 50)

    def masks(seed: int, step: int) -> list[torch.Tensor]:
        reseed(layers, seed, step)
        torch.rand(step)  # the global stream does not matter
        return [layer(x) for layer in layers]

    one = masks(0, 5)
    assert not torch.equal(*one)
    assert not torch.equal(masks(0, 6)[0], one[0])
    assert not torch.equal(masks(1, 5)[0], one[0])
    assert torch.equal(masks(0, 5)[0], one[0])


def test_each_process_drops_its_rows_of_the_whole_batchs_mask():
    x = torch.ones(6, 2, 3)
    whole = SharedDropout(0.5)(x)
    parts = [SharedDropout(0.5, rank, 3)(part) for rank, part in enumerate(x.chunk(3))]
    assert torch.equal(torch.cat(parts), whole)


def test_a_step_is_prepared_from_seed_and_step():
    net = share_dropout(nn.Sequential(nn.Dropout(0.5)), 0, 1)
    x, y = batch()
    plain = Chance(net, 5, seed=1, rank=0, share=12, first=0, alpha=None)
    assert plain.prepare(3, x, y) == (x, y)
    drawn = torch.rand(1)
    plain.prepare(4, x, y)
    assert not torch.equal(torch.rand(1), drawn)
    plain.prepare(3, x, y)
    assert torch.equal(torch.rand(1), drawn)
    mixing = Chance(net, 5, seed=1, rank=0, share=12, first=0, alpha=0.2)
    assert torch.equal(mixing.prepare(3, x, y)[0], mixup(x, y, 5, 0.2, 12, 0, 1, 3)[0])


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_train_the_weights_of_one_with_mixup_and_dropout(tmp_path: Path) -> None:
    overrides = ["data=digits", "model=vgg_digits", "norm=bn", "recipe.mixup=0.2"]
    overrides += ["precision=float64", "recipe.epochs=null", "recipe.steps=10", "batch.devices=2"]
    for processes in (1, 2):
        arguments = [*overrides, f"run.root={tmp_path / str(processes)}"]
        done = subprocess.run(
            command(arguments, processes),
            capture_output=True,
            text=True,
            env=environment(),
            cwd=tmp_path,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
    one, two = (weights(only_run(tmp_path / n)) for n in ("1", "2"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-11)

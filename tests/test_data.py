"""Seeds, slices, and the digits: splits, order, ranks, and what they refuse."""

import pytest
import torch

from normrepro.data import DataError, Digits, seed_of
from normrepro.data.base import eval_slice
from tests.batches import as_ranks, joined


def test_seed_of_is_stable_and_tells_parts_apart():
    assert seed_of(0, "order", 1) == 8677279991123922410
    seeds = {seed_of(*parts) for parts in [(1, 2), (12,), ("1", 2), (1, 2, 0), ("1, 2",)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("world", [1, 2, 7, 600])
def test_eval_slices_cover_everything_once_even_with_idle_ranks(world):
    seen = [index for rank in range(world) for index in eval_slice(597, rank, world)]
    assert seen == list(range(597))


def test_digits_split_is_stratified_disjoint_and_free_of_the_seed():
    a, b = Digits(seed=0, total=64), Digits(seed=1, total=64)
    assert (a.train_size, a.val_size, a.classes, a.shape) == (1200, 597, 10, (1, 8, 8))
    assert a.steps_per_epoch == 18
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.val_images, b.val_images)
    shares = a.labels.bincount() / 1200 - a.val_labels.bincount() / 597
    assert shares.abs().max() < 2 / 597
    whole = torch.cat([a.images, a.val_images]).flatten(1).double().sum(0)
    from sklearn.datasets import load_digits

    data = load_digits().data
    torch.testing.assert_close(whole, torch.from_numpy(data.sum(0) / 16))


@pytest.mark.parametrize("count", [10, 100, 333])
def test_train_images_keeps_a_stratified_part_of_the_training_images(count):
    whole, part = Digits(seed=0, total=8), Digits(seed=0, total=8, train_images=count)
    assert part.train_size == count
    assert (part.labels.bincount(minlength=10) - count / 10).abs().max() <= 1.5
    known = {image.numpy().tobytes() for image in whole.images}
    assert all(image.numpy().tobytes() in known for image in part.images)
    assert torch.equal(part.val_images, whole.val_images)


def test_epochs_are_shuffled_by_seed_and_epoch_and_repeat_exactly():
    def build(seed=0):
        return Digits(seed=seed, total=64, augment="strong")

    x, y = joined(build().train_batches(3))
    again, labels = joined(build().train_batches(3))
    assert x.shape == (1152, 1, 8, 8)
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert not torch.equal(y, joined(build().train_batches(4))[1])
    assert not torch.equal(y, joined(build(seed=1).train_batches(3))[1])
    rest = list(build().train_batches(3, start=10))
    assert len(rest) == 8
    assert torch.equal(rest[0][0], x[640:704])


@pytest.mark.parametrize("world", [2, 4])
def test_digits_ranks_together_see_the_same_global_batches(world):
    def build(rank=0, world=1):
        return Digits(seed=5, total=64, rank=rank, world=world, augment="strong")

    for (x, y), (pieces, labels) in zip(
        build().train_batches(2), as_ranks(build, world, 2), strict=True
    ):
        assert torch.equal(x, pieces)
        assert torch.equal(y, labels)


@pytest.mark.parametrize("world", [1, 2, 7])
def test_every_validation_image_is_seen_exactly_once(world):
    whole = Digits(seed=0, total=600)
    seen = []
    for rank in range(world):
        piece = Digits(seed=0, total=world, rank=rank, world=world)
        seen += list(piece.eval_batches())
    x, y = joined(seen)
    assert torch.equal(y, whole.val_labels)
    assert torch.equal(x, joined(whole.eval_batches())[0])


@pytest.mark.parametrize("world", [1, 7])
def test_training_images_are_judged_once_each_without_augmentation(world):
    whole = Digits(seed=0, total=600, augment="strong")
    ranks = [Digits(seed=0, total=7, rank=r, world=world) for r in range(world)]
    x, y = joined(batch for rank in ranks for batch in rank.train_eval_batches())
    assert torch.equal(y, whole.labels)
    assert torch.equal(x, joined(whole.train_eval_batches())[0])
    shown, labels = joined(Digits(seed=0, total=1200, augment="none").train_batches(0))
    assert torch.equal(labels.bincount(), y.bincount())
    torch.testing.assert_close(shown.sum(0), x.sum(0), rtol=1e-4, atol=1e-3)


def test_digits_are_normalized_and_can_be_enlarged_and_repeated_over_channels():
    x, _ = joined(Digits(seed=0, total=1200).train_batches(0))
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    large = Digits(seed=0, total=64, size=32, channels=3)
    x, _ = next(iter(large.train_batches(0)))
    assert x.shape == (64, *large.shape) == (64, 3, 32, 32)
    assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"total": 1201}, "batch.total=1201"),
        ({"total": 64, "world": 3}, "3 processes"),
        ({"total": 64, "train_images": 5}, "train_images=5"),
        ({"total": 64, "root": "x"}, "data.root=x"),
        ({"total": 64, "size": 4}, "data.size"),
        ({"total": 64, "augment": "huge"}, "none, strong"),
        ({"total": 64, "augment": {"shfit": 1}}, "augment.shfit"),
        ({"total": 64, "augment": {"shift": 1.5}}, "whole number"),
        ({"total": 64, "augment": {"noise": -1}}, "augment.noise=-1"),
    ],
)
def test_digits_refuse_what_they_cannot_do(options, hint):
    with pytest.raises(DataError, match=hint):
        Digits(seed=0, **options)

"""Folders of images: pixels that workers and ranks do not change, and refusals before training."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normrepro.data import DataError, Folder
from tests.batches import as_ranks, joined
from tests.photos import folder, make_photos

IMAGENETTE = Path(__file__).parents[1] / "../shared/data/imagenette.tar.xz"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An ImageNet-format folder: 3 classes, 7 training and 3 validation JPEGs each."""
    return make_photos(tmp_path_factory.mktemp("photos"))


def test_folder_reads_the_layout(photos):
    data = folder(photos)
    assert (data.classes, data.train_size, data.val_size) == (3, 21, 9)
    assert (data.shape, data.steps_per_epoch) == ((3, 32, 32), 5)
    assert data.class_names == ["ape", "bee", "cat"]
    x, y = joined(data.eval_batches())
    assert x.shape == (9, 3, 32, 32)
    assert x.dtype == torch.float32
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    brightness = x.mean(dim=(1, 2, 3)).view(3, 3)
    assert (brightness[1:].min(dim=1).values > brightness[:-1].max(dim=1).values).all()


def test_folder_evaluation_is_the_middle_of_the_resized_image(photos):
    x, _ = next(iter(folder(photos, size=224).eval_batches()))
    with Image.open(photos / "val" / "ape" / "1.JPEG") as image:  # 50 wide, 41 high
        large = image.resize((int(256 * 50 / 41), 256), Image.Resampling.BILINEAR)
    left = round((large.width - 224) / 2)
    pixels = np.asarray(large.crop((left, 16, left + 224, 240)), dtype=np.float32) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch.testing.assert_close(
        x[1].permute(1, 2, 0),
        torch.from_numpy(expected).float(),
        rtol=0,
        atol=0.02,  # a gray level
    )


def test_neither_workers_nor_ranks_nor_global_randomness_change_a_pixel(photos):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    data = folder(photos)
    x, y = joined(data.train_batches(6))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    workers = folder(photos, workers=2)
    list(workers.train_batches(5))
    pieces, labels = joined(workers.train_batches(6))
    assert torch.equal(x, pieces)
    assert torch.equal(y, labels)

    def build(rank, world):
        return folder(photos, rank=rank, world=world)

    pieces, labels = joined(as_ranks(build, 2, 6))
    assert torch.equal(x, pieces)
    assert torch.equal(y, labels)
    late, _ = joined(workers.train_batches(6, start=3))
    assert torch.equal(late, x[12:])
    assert not torch.equal(joined(data.train_batches(7))[1], y)


def test_persistent_workers_survive_an_epoch_that_was_left_early(photos):
    data = folder(photos, workers=1)
    next(iter(data.train_batches(0)))
    x, _ = joined(data.train_batches(1))
    assert torch.equal(x, joined(folder(photos).train_batches(1))[0])


def test_an_image_looks_different_in_every_epoch_and_seed(photos):
    one = folder(photos, total=21)
    images = [
        joined(source.train_batches(epoch))[0].sum(dim=(1, 2, 3)).sort().values
        for source, epoch in [(one, 0), (one, 1), (folder(photos, total=21, seed=1), 0)]
    ]
    assert not torch.allclose(images[0], images[1])
    assert not torch.allclose(images[0], images[2])
    plain = [folder(photos, total=21, augment="none", seed=s).train_batches(0) for s in (0, 1)]
    a, b = (joined(batches)[0].sum(dim=(1, 2, 3)).sort().values for batches in plain)
    assert torch.equal(a, b)


@pytest.mark.parametrize("world", [2, 4, 10])
def test_folder_ranks_judge_every_image_once(photos, world):
    whole, _ = joined(folder(photos).eval_batches())
    ranks = [folder(photos, total=20, rank=r, world=world) for r in range(world)]
    pieces, _ = joined(batch for rank in ranks for batch in rank.eval_batches())
    assert torch.equal(pieces, whole)


def test_folder_ranks_judge_every_training_image_once_by_the_crop_of_evaluation(photos):
    whole, labels = joined(folder(photos).train_eval_batches())
    ranks = [folder(photos, rank=r, world=4) for r in range(4)]
    pieces, again = joined(batch for rank in ranks for batch in rank.train_eval_batches())
    assert torch.equal(pieces, whole)
    assert torch.equal(labels, again)
    assert labels.tolist() == [label for label in range(3) for _ in range(7)]
    plain, _ = joined(folder(photos, total=21, augment="none").train_batches(0))
    assert torch.equal(plain.sum(dim=(1, 2, 3)).sort()[0], whole.sum(dim=(1, 2, 3)).sort()[0])


def break_layout(root, how):
    """Damage a copy of the layout in one way; return the root to read."""
    for split in ("train", "val"):
        for name in ("ape", "bee"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(root / split / name / "0.png")
    if how == "absent":
        return root / "nowhere"
    if how == "no val":
        (root / "val").rename(root / "valid")
    if how == "no classes":
        (root / "val").rename(root / "old")
        (root / "val").mkdir()
        Image.new("RGB", (16, 16)).save(root / "val" / "0.png")
    if how == "empty class":
        (root / "train" / "bee" / "0.png").rename(root / "train" / "bee" / "0.txt")
    if how == "mismatch":
        (root / "val" / "bee").rename(root / "val" / "bees")
    return root


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("absent", r"nowhere.*train/<class>.*data\.root=.*DATA_DIR"),
        ("no val", r"val is no folder"),
        ("no classes", r"no class folders in .*val"),
        ("empty class", r"1 class folder\(s\) in .*train hold no images: bee"),
        ("mismatch", r"only in train: bee; only in val: bees"),
    ],
)
def test_a_broken_layout_is_refused_before_training(tmp_path, how, says):
    with pytest.raises(DataError, match=says):
        folder(break_layout(tmp_path, how), total=1)


def test_a_root_that_is_not_set_names_the_override():
    with pytest.raises(DataError, match=r"data\.root is not set.*DATA_DIR"):
        Folder(seed=0, total=1, root=None)


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        ({"shift": 1}, r"augment\.shift is unknown to folders of images"),
        ({"flip": 2}, r"augment\.flip=2"),
        ({"area": [0.5, 2]}, r"augment\.area"),
        ({"area": 3}, r"augment\.area=3 must be \[low, high\]"),
        ("light", "fb_resnet"),
    ],
)
def test_folder_refuses_augmentations_it_does_not_know(photos, augment, says):
    with pytest.raises(DataError, match=says):
        folder(photos, augment=augment)


@pytest.mark.slow
def test_real_photographs_train_and_evaluate(tmp_path):
    if not IMAGENETTE.exists():
        pytest.skip(f"the sample of ImageNet is not at {IMAGENETTE}")
    with tarfile.open(IMAGENETTE) as archive:
        archive.extractall(tmp_path, filter="data")
    data = folder(tmp_path / "imagenette", total=64, size=64, workers=2)
    assert (data.classes, data.train_size, data.val_size) == (10, 1000, 400)
    x, y = joined(data.train_batches(0))
    assert x.shape == (960, 3, 64, 64)
    assert x.isfinite().all()
    assert y.bincount(minlength=10).min() >= 80
    x, y = joined(data.eval_batches())
    assert y.bincount().tolist() == [40] * 10
    assert abs(x.mean()) < 0.3
    assert 0.7 < x.std() < 1.4

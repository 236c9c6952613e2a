"""CIFAR and MNIST: bytes on the device, cropped, flipped and scaled by batches; their options."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from normrepro import config
from normrepro.config import ConfigError
from normrepro.data import DataError, cifar, mnist, small_sets
from normrepro.data.byte_images import ByteImages, crop
from normrepro.training import build
from tests.batches import as_ranks, joined

SHARED = Path(__file__).parents[1] / "../shared/data"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pictures(count, channels=3, size=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shape = (count, channels, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=draw), torch.arange(count) % 10


def source(train=60, val=21, augment="standard", **options):
    options = {"seed": 0, "total": 12, **options}
    parts = pictures(train), pictures(val, seed=1)
    return ByteImages(*parts, 10, MEAN, STD, augment, "data=test", **options)


@pytest.fixture
def made_up(monkeypatch):
    """MNIST of 500 and 100 images in memory, read in place of the files."""
    parts = {True: pictures(500, 1, 28), False: pictures(100, 1, 28, seed=1)}

    def read(name, top, train, download):
        images, labels = parts[train]
        return SimpleNamespace(data=images[:, 0], targets=labels)

    monkeypatch.setattr(small_sets, "read", read)
    return {train: images for train, (images, _) in parts.items()}


def test_crop_cuts_the_image_out_of_a_frame_of_the_given_color():
    images, _ = pictures(50)
    padding = torch.tensor([9, 8, 7], dtype=torch.uint8).view(3, 1, 1)
    top, left = torch.randint(9, (2, 50), generator=torch.Generator().manual_seed(0))
    cut = crop(images, top, left, 4, padding)
    for i in range(50):  # slowly: a frame, then a window
        frame = padding.expand(3, 40, 40).clone()
        frame[:, 4:36, 4:36] = images[i]
        window = frame[:, top[i] : top[i] + 32, left[i] : left[i] + 32]
        assert torch.equal(cut[i], window)


def test_evaluation_scales_bytes_by_the_mean_and_deviation_of_each_channel():
    data = source()
    x, y = joined(data.eval_batches())
    images, labels = pictures(21, seed=1)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(x.double(), (images / 255.0 - mean) / std, rtol=0, atol=2e-6)
    assert torch.equal(y, labels)
    x, y = joined(data.train_eval_batches())
    torch.testing.assert_close(
        x.double(), (pictures(60)[0] / 255.0 - mean) / std, atol=2e-6, rtol=0
    )


def test_an_epoch_crops_and_flips_each_image_by_seed_epoch_and_index_alone():
    whole, other = source(total=60), source(total=60, seed=1)
    x, y = joined(whole.train_batches(3))
    assert torch.equal(y.bincount(), torch.full((10,), 6))
    assert torch.equal(x, joined(source(total=60).train_batches(3))[0])
    shown = whole.shown(3)
    everything = torch.arange(60)
    first = shown(everything)
    assert torch.equal(shown(everything.flip(0)).flip(0), first)  # not by the place in the batch
    assert torch.equal(torch.cat([shown(p) for p in everything.split(7)]), first)
    assert not torch.equal(other.shown(3)(everything), first)
    for augment in ({"crop": 4}, {"flip": 0.5}):
        one, two = (source(augment=augment).shown(epoch)(everything) for epoch in (3, 4))
        assert not torch.equal(one, two)
    late = list(source().train_batches(3, start=2))
    assert torch.equal(joined(late)[0], joined(source().train_batches(3))[0][24:])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_the_same_global_batches(world):
    def build(rank=0, world=1):
        return source(rank=rank, world=world)

    for (x, y), (pieces, labels) in zip(
        build().train_batches(2), as_ranks(build, world, 2), strict=True
    ):
        assert torch.equal(x, pieces)
        assert torch.equal(y, labels)


def test_crops_and_flips_have_their_shares():
    images = torch.zeros(4000, 1, 10, 10, dtype=torch.uint8)
    images[:, :, 4, 2] = 255
    part = images, torch.zeros(4000, dtype=torch.long)
    data = ByteImages(part, part, 1, (0.0,), (1.0,), {"crop": 2, "flip": 0.25}, "", 0, 4000)
    spot = data.shown(0)(torch.arange(4000)).flatten(1)
    seen = spot.sum(0).view(10, 10) / 4000
    rows, columns = seen.sum(1), seen.sum(0)
    assert rows.count_nonzero() == 5
    assert (rows[2:7] - 0.2).abs().max() < 0.03
    assert abs(columns[5:].sum() - 0.25) < 0.03  # mirrored
    plain = ByteImages(part, part, 1, (0.0,), (1.0,), "none", "", 0, 4000)
    assert torch.equal(plain.shown(0)(torch.arange(4000)), images.float() / 255)


def test_full_batch_steps_see_every_image_once():
    data = source(total=60, augment="none")
    assert data.steps_per_epoch == 1
    (x, _), (again, _) = joined(data.train_batches(0)), joined(data.train_batches(1))
    assert not torch.equal(x, again)
    torch.testing.assert_close(x.sum(0), again.sum(0))


def test_mnist_trains_on_the_test_set_or_a_sample_of_it(made_up):
    whole = mnist(seed=0, total=100, root=".", train_from="test")
    assert (whole.train_size, whole.val_size, whole.classes) == (100, 100, 10)
    assert torch.equal(whole.images, whole.val_images)
    known = {image.numpy().tobytes() for image in made_up[False]}
    kept = [
        mnist(seed=seed, total=32, root=".", train_from="test", train_images=32).images
        for seed in (0, 0, 1)
    ]
    assert all({image.numpy().tobytes() for image in part} < known for part in kept)
    assert len({image.numpy().tobytes() for image in kept[0]}) == 32  # without replacement
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_mnist_keeps_a_stratified_part_of_the_training_images_whatever_the_seed(made_up):
    parts = [mnist(seed=seed, total=10, root=".", train_images=50) for seed in (0, 1)]
    assert torch.equal(parts[0].images, parts[1].images)
    assert parts[0].labels.bincount().tolist() == [5] * 10
    assert parts[0].shape == (1, 28, 28)


def test_mnist_is_normalized_unless_told_otherwise(made_up):
    (x, _), (raw, _) = (
        joined(mnist(seed=0, total=10, root=".", normalize=on).eval_batches())
        for on in (True, False)
    )
    assert raw.min() == 0
    torch.testing.assert_close(raw.max(), torch.tensor(1.0))
    torch.testing.assert_close(x, (raw - 0.1307) / 0.3081)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train_from": "both"}, "train_from=both must be train or test"),
        ({"train_images": 0}, "train_images=0 must be null or 1 to 500"),
        ({"train_images": 101, "train_from": "test"}, "null or 1 to 100"),
        ({"size": 32}, "set data.size=28"),
        ({"root": None}, r"data\.root is not set.*MNIST/raw.*DATA_DIR.*data\.download=true"),
        ({"augment": {"rotate": 3}}, r"augment\.rotate is unknown to data=mnist"),
        ({"augment": {"crop": 1.5}}, r"augment\.crop=1.5"),
        ({"augment": {"flip": 2}}, r"augment\.flip=2"),
        ({"total": 501}, r"batch\.total=501 is larger than the 500"),
    ],
)
def test_options_out_of_their_limits_are_refused(made_up, options, says):
    with pytest.raises(DataError, match=says):
        mnist(**{"seed": 0, "total": 10, "root": ".", **options})


@pytest.mark.parametrize("open_set", [cifar, mnist])
def test_absent_and_damaged_files_are_named_with_the_overrides_that_mend_it(tmp_path, open_set):
    says = r"looked for .* in .*{}.*data\.root=<.*DATA_DIR.*data\.download=true"
    with pytest.raises(DataError, match=says.format("which does not exist")):
        open_set(seed=0, total=10, root=str(tmp_path))
    for folder in ("MNIST/raw", "cifar-10-batches-py"):
        (tmp_path / folder).mkdir(parents=True)
        for part in ("images-idx3", "labels-idx1"):
            (tmp_path / folder / f"t10k-{part}-ubyte").write_bytes(b"\0\0\x08\x03no")
            (tmp_path / folder / f"train-{part}-ubyte").write_bytes(b"\0\0\x08\x03no")
    with pytest.raises(DataError, match=says.format("damaged or incomplete")):
        open_set(seed=0, total=10, root=str(tmp_path))


def test_a_download_without_a_network_says_so(tmp_path, monkeypatch):
    from torchvision import datasets

    def refuse(root, train, download=False):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR100", refuse)
    with pytest.raises(DataError, match=r"data\.download=true: cannot download .*no route"):
        cifar(seed=0, total=10, classes=100, root=str(tmp_path / "new"), download=True)


def test_where_the_files_lie_is_no_part_of_a_runs_name():
    names = {
        config.run_name(config.compose(["data=cifar10", *more]))
        for more in ([], ["data.root=/elsewhere"], ["data.download=true"])
    }
    assert len(names) == 1


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        (["data=mnist", "data.source.train_from=test"], True),
        (["data=mnist", "data.source.train_from=test", "data.source.train_images=32"], True),
        (["data=cifar10", "data.source.train_images=500"], False),
    ],
)
def test_the_papers_scale_takes_its_data_and_xbnblocks_samples(overrides, passes, caplog):
    cfg = config.compose([*overrides, "scale=paper"])
    train = cfg.data.source.train_images or 10000
    found = {"classes": 10, "train": train, "val": 10000}
    if passes:
        build.compare_with_known(cfg, found)
        assert not caplog.records
        return
    with pytest.raises(ConfigError, match=r"scale=paper needs the paper's data, .*50000"):
        build.compare_with_known(cfg, found)
    cfg.scale.name = "custom"
    build.compare_with_known(cfg, found)
    assert "data=cifar10 is known to have" in caplog.text


@pytest.mark.slow
def test_the_real_sets_have_the_statistics_that_scale_them(tmp_path):
    if not (SHARED / "unpack.py").exists():
        pytest.skip(f"the data sets are not at {SHARED}")
    pytest.importorskip("imagecodecs", reason="unpacking CIFAR needs it")
    command = [sys.executable, str(SHARED / "unpack.py"), str(tmp_path), "mnist", "cifar10"]
    subprocess.run(command, check=True, timeout=240)
    for data, name in [
        (mnist(seed=0, total=100, root=str(tmp_path)), "MNIST"),
        (cifar(seed=0, total=100, root=str(tmp_path)), "CIFAR10"),
    ]:
        pixels = data.images.transpose(0, 1).flatten(1).float() / 255
        mean, std = (torch.tensor(v) for v in small_sets.STATISTICS[name])
        torch.testing.assert_close(pixels.mean(1), mean, rtol=0, atol=3e-4)
        torch.testing.assert_close(pixels.std(1), std, rtol=0, atol=3e-4)
        assert (data.train_size, data.val_size) in [(60000, 10000), (50000, 10000)]
        assert data.labels.bincount().min() > 4900
        assert data.val_labels.bincount().sum() == 10000

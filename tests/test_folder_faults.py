"""Folders of images with real faults: broken files, odd formats, lost disks."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normrepro.data import DataError
from normrepro.data.reading import by_pillow, read
from tests.batches import as_ranks, joined
from tests.photos import folder, make_photos


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def breaks(path: Path, how: str) -> None:
    """Damage one file."""
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no image":
        path.write_bytes(b"<html>404</html>")
    else:
        path.unlink()


FAULTS = ("truncated", "empty", "no image", "gone")


@pytest.mark.parametrize("how", FAULTS)
def test_an_unreadable_training_image_is_replaced_counted_and_told(photos, how, caplog):
    data = folder(photos, total=21)
    broken = photos / "train" / "bee" / "3.JPEG"
    breaks(broken, how)  # after the folder was listed, as a disk does it in mid-epoch
    x, y = joined(data.train_batches(0))
    assert x.shape[0] == 21
    assert x.isfinite().all()
    assert data.skipped == 1
    (told,) = (r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage())
    assert str(broken) in told
    assert "epoch 1: 1 training image(s)" in told
    again = folder(photos, total=21) if how != "gone" else data  # a scan would miss it
    assert torch.equal(joined(again.train_batches(0))[0], x)
    assert len(y) == 21


def test_neither_workers_nor_ranks_nor_resume_change_what_stands_in(photos):
    for number, how in enumerate(FAULTS[:3]):
        breaks(photos / "train" / "ape" / f"{number}.JPEG", how)
    x, y = joined(folder(photos).train_batches(2))
    for source in (folder(photos, workers=2), folder(photos, seed=0)):
        pieces, labels = joined(source.train_batches(2))
        assert torch.equal(pieces, x)
        assert torch.equal(labels, y)

    def build(rank, world):
        return folder(photos, rank=rank, world=world)

    assert torch.equal(joined(as_ranks(build, 2, 2))[0], x)
    assert torch.equal(joined(folder(photos).train_batches(2, start=3))[0], x[12:])


def test_the_other_images_of_an_epoch_stay_as_they_were(photos):
    whole, _ = joined(folder(photos, total=21).train_batches(0))
    breaks(photos / "train" / "cat" / "5.JPEG", "truncated")
    broken, _ = joined(folder(photos, total=21).train_batches(0))
    assert (whole != broken).flatten(1).any(dim=1).sum() == 1


def test_a_count_goes_on_from_a_checkpoint_within_an_epoch(photos):
    for number in range(4):
        breaks(photos / "train" / "bee" / f"{number}.JPEG", "empty")
    whole, parts = folder(photos), folder(photos)
    list(whole.train_batches(0))
    batches = parts.train_batches(0)
    next(batches), next(batches)
    resumed = folder(photos)
    resumed.skipped = parts.skipped
    list(resumed.train_batches(0, start=2))
    assert resumed.skipped == whole.skipped > 0
    list(resumed.train_batches(1))
    assert resumed.skipped <= 4


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_unreadable_image_is_an_error_in_evaluation(photos, how, workers):
    data = folder(photos, workers=workers)
    breaks(photos / "val" / "ape" / "1.JPEG", how)
    with pytest.raises(DataError, match=r"cannot read the image .*val/ape/1\.JPEG"):
        list(data.eval_batches())


def test_a_disk_that_is_gone_ends_the_run(photos):
    data = folder(photos)
    shutil.rmtree(photos / "train")
    with pytest.raises(DataError, match=r"10 others .* is the disk of data\.root still there"):
        list(data.train_batches(0))


def test_odd_formats_are_read_as_rgb_bytes(tmp_path):
    ramp = np.linspace(0, 255, 64 * 48).reshape(64, 48).astype(np.uint8)
    color = Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2))
    color.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    color.convert("L").save(tmp_path / "gray.jpg", quality=95)
    Image.fromarray(ramp.astype(np.uint16) * 256 + 77).save(tmp_path / "deep.png")
    color.convert("RGBA").save(tmp_path / "alpha.png")
    color.convert("P").save(tmp_path / "palette.png", transparency=bytes([0] * 256))
    color.save(tmp_path / "png_named.jpg", "PNG")
    color.save(tmp_path / "progressive.jpg", progressive=True, quality=95)
    wanted = torch.from_numpy(np.array(color)).permute(2, 0, 1).float()
    gray = torch.from_numpy(np.array(color.convert("L"))).float()
    for name in ("cmyk.jpg", "alpha.png", "palette.png", "png_named.jpg", "progressive.jpg"):
        pixels = read(str(tmp_path / name))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 64, 48)), name
        limit = 25 if name == "palette.png" else 4  # the standard palette has 216 colors
        assert (pixels.float() - wanted).abs().mean() < limit, name
    assert (read(str(tmp_path / "gray.jpg"))[1].float() - gray).abs().mean() < 2
    deep = read(str(tmp_path / "deep.png"))
    assert torch.equal(deep, torch.from_numpy(ramp).expand(3, 64, 48))


def test_both_decoders_give_the_same_pixels(photos):
    for path in sorted((photos / "train").glob("*/*.JPEG")):
        by_both = read(str(path)), torch.from_numpy(by_pillow(path.read_bytes())).permute(2, 0, 1)
        assert torch.equal(*by_both)


def test_a_folder_that_cannot_be_listed_is_named(photos, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot list the folder .*bee: Permission denied"):
        folder(photos)


def test_validation_images_among_the_training_images_are_told(photos, caplog):
    same_size = photos / "train" / "bee" / "1.JPEG", photos / "val" / "bee" / "1.JPEG"
    for number, path in enumerate(same_size):
        path.write_bytes(bytes([number]) * 99)
    assert folder(photos).notes == []  # the same names, other pictures
    shutil.copy(photos / "val" / "bee" / "2.JPEG", photos / "train" / "bee" / "2.JPEG")
    notes = ["1 image(s) are in train and in val: bee/2.JPEG"]
    assert folder(photos).notes == notes
    assert folder(photos, rank=1, world=2).notes == []  # said once
    assert notes[0] in caplog.text

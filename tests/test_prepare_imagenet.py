"""scripts/prepare_imagenet.sh on made-up archives of the official structure."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from normrepro.data import Folder

SCRIPT = Path(__file__).parents[1] / "scripts/prepare_imagenet.sh"
WNIDS = ["n03", "n01", "n02"]  # class numbers 1, 2, 3: not in the order of the names
TRAIN, VAL = 6, 9


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), shade).save(file, "JPEG")
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def synsets() -> np.ndarray:
    """The table of meta.mat: three leaves and an inner node."""
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    rows = [(number, wnid, 0) for number, wnid in enumerate(WNIDS, 1)]
    return np.array([*rows, (4, "n99", 3)], dtype=fields)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The three archives: three classes, six training images each, nine validation images."""
    folder = tmp_path_factory.mktemp("archives")
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for number, wnid in enumerate(WNIDS, 1):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for image in range(TRAIN):
                    add(inner, f"{wnid}_{image}.JPEG", jpeg(60 * number))
            add(outer, f"{wnid}.tar", file.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as outer:
        for image in range(1, VAL + 1):
            add(outer, f"ILSVRC2012_val_{image:08d}.JPEG", jpeg(60 * truth(image)))
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets()})
    labels = "".join(f"{truth(image)}\n" for image in range(1, VAL + 1))
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as kit:
        add(kit, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        name = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
        add(kit, name, labels.encode())
    return folder


def truth(image: int) -> int:
    """The class number of validation image 1, 2, ..."""
    return image % 3 + 1


def arguments(archives: Path, dest: Path, *counts: int) -> list[str]:
    names = ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz")
    sums = [
        hashlib.md5((archives / f"ILSVRC2012_{name}").read_bytes()).hexdigest() for name in names
    ]
    counts = counts or (3, 3 * TRAIN, VAL)
    return [str(SCRIPT), str(archives), str(dest), "--md5", *sums, "--counts", *map(str, counts)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_archives_become_folders_with_the_right_labels(archives, tmp_path):
    done = run(arguments(archives, tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    data = Folder(
        seed=0, total=1, root=str(tmp_path / "new"), size=16, workers=0, augment={"flip": 0.5}
    )
    assert data.class_names == sorted(WNIDS)
    assert (data.train_size, data.val_size) == (3 * TRAIN, VAL)
    for batches in (data.eval_batches(), data.train_eval_batches()):
        for images, labels in batches:  # the shade of an image tells its class number
            shades = (images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255
            wanted = [60 * (WNIDS.index(data.class_names[label]) + 1) for label in labels]
            assert np.abs(shades.numpy() - wanted).max() < 4
    (tmp_path / "new/train/n01/n01_0.JPEG").write_bytes(b"changed")
    again = run(arguments(archives, tmp_path / "new"))
    assert again.returncode == 0
    assert "MD5" not in again.stdout  # neither checked nor unpacked twice
    assert (tmp_path / "new/train/n01/n01_0.JPEG").read_bytes() == b"changed"


def test_a_killed_unpacking_goes_on(archives, tmp_path):
    command = arguments(archives, tmp_path / "new")
    child = subprocess.Popen(command, env=os.environ | {"PYTHON": sys.executable})
    deadline = time.monotonic() + 60
    while not (tmp_path / "new/val").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    partial = tmp_path / "new/train/.n03.part"  # as if killed within a class
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "n03_0.JPEG").write_bytes(b"half")
    (partial / "stray.JPEG").write_bytes(b"of an older archive")
    (tmp_path / "new/val" / f".{VAL}.part").write_bytes(b"half")
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "new/train/.n03.part").exists()
    assert (tmp_path / "new/train/n03/n03_0.JPEG").read_bytes() == jpeg(60)


def test_what_is_wrong_is_said(archives, tmp_path):
    command = arguments(archives, tmp_path / "new")
    official = run(command[:3])
    assert official.returncode == 1
    assert "bytes, not 147897477120: download it again" in official.stderr
    command[4] = "0" * 32
    assert "has the MD5 sum" in run(command).stderr
    missing = run([str(SCRIPT), str(tmp_path), str(tmp_path / "new")])
    assert "ILSVRC2012_img_train.tar is missing" in missing.stderr
    short = run(arguments(archives, tmp_path / "new", 3, 3 * TRAIN + 1, VAL))
    assert short.returncode == 1
    assert "'train': 18" in short.stderr

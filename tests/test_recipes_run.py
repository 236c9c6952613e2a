"""Each paper's recipe takes its first steps on two processes that share its devices."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import command, environment

pytestmark = [pytest.mark.slow, pytest.mark.dist]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet-format folder: 6 classes, 6 training images and one validation image each."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for label in range(6):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (40, 48, 3)) + 30 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.JPEG")
    return root


def sweep(tmp_path: Path, *overrides: str) -> dict[str, dict]:
    """Train all runs of a sweep on two processes; each recipe's record."""
    arguments = ["-m", *overrides, "scale=smoke", f"run.root={tmp_path}"]
    done = subprocess.run(
        command(arguments, 2),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    return {record["config"]["recipe"]["name"]: record for record in records}


def check(records: dict[str, dict], recipes: list[str]) -> None:
    assert set(records) == set(recipes)
    for record in records.values():
        assert record["status"] == "finished"
        assert record["environment"]["world"] == 2
        assert record["history"][-1]["step"] == 2
        assert {"error", "best_error", "top5_error", "best_top5_error"} <= set(record["metrics"])


def test_recipes_whose_batch_follows_from_the_normalization_batch(tmp_path, photos):
    recipes = ["cbn_imagenet", "evalnorm_imagenet"]
    data = ["data=folder", f"data.root={photos}", "data.size=32", "data.workers=0"]
    net = ["model=resnet18", "norm=evalnorm", "batch.norm=2"]
    records = sweep(tmp_path, *data, *net, f"recipe={','.join(recipes)}")
    check(records, recipes)
    totals = {name: record["config"]["batch"]["total"] for name, record in records.items()}
    assert totals == {"cbn_imagenet": 8, "evalnorm_imagenet": 16}


def test_recipes_of_a_fixed_batch(tmp_path, photos):
    recipes = ["mabn_imagenet", "xbnblock_imagenet", "xbnblock_advanced"]
    data = ["data=folder", f"data.root={photos}", "data.size=32", "data.workers=0"]
    net = ["model=resnet18", "norm=xbn_p2", "batch.total=16", "batch.norm=2"]
    advanced = ["recipe.mixup=0.2", "recipe.label_smoothing=0.1", "recipe.schedule.name=cosine"]
    check(sweep(tmp_path, *data, *net, *advanced, f"recipe={','.join(recipes)}"), recipes)


def test_recipes_of_small_images(tmp_path):
    recipes = ["evalnorm_cifar", "xbnblock_mnist"]  # on digits: neither CIFAR nor MNIST is at hand
    data = ["data=digits", "recipe.augment=none", "batch.total=32", "batch.devices=2"]
    records = sweep(tmp_path, *data, "model=mlp_digits", f"recipe={','.join(recipes)}")
    check(records, recipes)
    assert records["xbnblock_mnist"]["config"]["batch"]["norm"] == 32  # both devices joined

"""Runs in this process: records, divergence, precision, evaluation."""

import json
import math
from pathlib import Path

import pytest
import torch

from normrepro import engine, load
from normrepro.config import ConfigError, compose, run_dir
from tests.conftest import SMALL


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def run(tmp_path: Path, *overrides: str) -> dict:
    cfg = compose([*SMALL, "recipe.epochs=2", *overrides, f"run.root={tmp_path}"])
    run_dir(cfg).mkdir(parents=True, exist_ok=True)
    engine.run(cfg)
    return json.loads((run_dir(cfg) / "result.json").read_text())


def test_a_record_has_all_that_a_table_needs(tmp_path: Path) -> None:
    record = run(tmp_path, "norm=mabn")
    assert record["status"] == "finished"
    assert record["data"] == {"classes": 10, "train": 256, "val": 597}
    assert [row["epoch"] for row in record["history"]] == [1, 2]
    assert record["history"][-1]["step"] == 16
    assert record["metrics"]["error"] == record["history"][-1]["error"]
    assert record["metrics"]["best_error"] == min(row["error"] for row in record["history"])
    assert record["metrics"]["top5_error"] == record["history"][-1]["top5_error"]
    assert record["metrics"]["best_top5_error"] == min(r["top5_error"] for r in record["history"])
    assert record["environment"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["config"]["batch"] == {"total": 32, "devices": 2, "norm": 2}
    assert "hydra" not in record["config"]
    assert record["config"]["run"]["root"] is None  # a folder of the machine


@pytest.mark.parametrize("norm", ["bn", "brn", "mabn", "mabn_official", "gn"])
def test_every_normalizer_learns(tmp_path: Path, norm: str) -> None:
    easy = ["recipe.augment=none", "batch.total=16", "batch.norm=8", "recipe.optimizer.lr=0.1"]
    easy += ["norm.layer.groups=2"] if norm == "gn" else []
    record = run(tmp_path, f"norm={norm}", "recipe.epochs=8", *easy)
    history = record["history"]
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert record["metrics"]["error"] < 50  # chance is 90


def test_a_diverging_run_is_recorded_and_ends(tmp_path: Path) -> None:
    record = run(tmp_path, "norm=gn", "norm.layer.groups=2", "recipe.optimizer.lr=1e30")
    assert record["status"] == "diverged"
    assert record["diverged"]["epoch"] == 1
    assert 0 < record["diverged"]["step"] < 16
    assert record["history"] == []


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_precision_is_the_runs_own(tmp_path: Path, precision: str) -> None:
    record = run(tmp_path, "norm=mabn", f"precision={precision}")
    assert math.isfinite(record["metrics"]["loss"])
    (folder,) = tmp_path.iterdir()
    dtype = torch.load(folder / "last.pt", weights_only=True)["model"]["bn1.running_var"].dtype
    assert dtype == (torch.float64 if precision == "float64" else torch.float32)


def test_channels_last_and_contiguous_agree_but_for_rounding(tmp_path: Path) -> None:
    one = run(tmp_path / "a", "norm=mabn", "precision=float64")
    two = run(tmp_path / "b", "norm=mabn", "precision=float64", "run.channels_last=true")
    assert one["run"] == two["run"]
    assert two["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-9)


def test_the_papers_scale_wants_the_papers_data(tmp_path: Path, image_folder: Path) -> None:
    cfg = compose(
        [
            "data=imagenet",
            f"data.root={image_folder}",
            "scale=paper",
            "batch.total=8",
            f"run.root={tmp_path}",
        ]
    )
    with pytest.raises(ConfigError, match="scale=paper needs the paper's data"):
        engine.run(cfg)


def test_an_imagenet_format_folder_trains(tmp_path: Path, image_folder: Path) -> None:
    cfg = compose(
        [
            *("data=imagenet", f"data.root={image_folder}", "norm=mabn", "model=resnet18"),
            *("data.size=32", "data.workers=0", "batch.total=4", "batch.devices=1", "scale=smoke"),
            f"run.root={tmp_path / 'runs'}",
        ]
    )
    run_dir(cfg).mkdir(parents=True)
    engine.run(cfg)
    record = json.loads((run_dir(cfg) / "result.json").read_text())
    assert record["status"] == "finished"
    assert record["history"][-1]["step"] == 2


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of noise in ImageNet's layout."""
    from PIL import Image

    root = tmp_path / "images"
    pixels = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(0, 256, (40, 48, 3), generator=pixels, dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(root / split / name / f"{i}.JPEG")
    return root


def test_a_run_can_be_loaded_and_evaluated_again(tmp_path: Path) -> None:
    record = run(tmp_path, "norm=mabn", "batch.devices=2")
    model = load(record["run"], root=tmp_path)
    assert not model.training
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    cfg = compose([f"run.eval={record['run']}", f"run.root={tmp_path}"])
    assert engine.run(cfg) == pytest.approx(record["metrics"]["error"], abs=1e-9)
    with pytest.raises(ConfigError, match=r"run\.eval=nowhere: no checkpoint"):
        load("nowhere", root=tmp_path)


def test_a_model_that_does_not_fit_the_images_is_refused(tmp_path: Path) -> None:
    cfg = compose(["model=resnet18", f"run.root={tmp_path}"])
    with pytest.raises(ConfigError, match=r"data\.channels"):
        engine.run(cfg)


def test_a_layers_own_refusal_names_the_norm(tmp_path: Path) -> None:
    odd = ["norm=gn", "norm.layer.groups=7", "norm.layer.indivisible=error"]
    cfg = compose([*odd, f"run.root={tmp_path}"])
    with pytest.raises(ConfigError, match=r"norm=gn.*groups=7 does not divide"):
        engine.run(cfg)

"""Two real optimizer steps of what the papers' classification tables train, at their own shapes.

Each architecture, normalizer and batch of a table is run once at the paper's recipe, on a made-up
folder of small images. Kept are the network, the layer with its numbers, and the normalization
batch up to 32 images; smaller than the paper's are the images, the number of devices (1 or 2), the
groups per device (1 or 2), and with them the step's images. A normalization batch above 32
(XBNBlock's 64 and 128) becomes 4. EvalNorm's offline estimation takes one batch.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from normrepro import config, engine, papers
from normrepro.tables import Line, Table, overlay
from normrepro.training import checkpoint

pytestmark = pytest.mark.slow
TRAINED = {
    "mabn": ("table1", "table2", "table4"),
    "cbn": ("table2", "table3", "table4", "table9"),
    "evalnorm": ("table1",),
    "xbnblock": ("table1", "table2", "table3"),
}
NAMES = [(paper, name) for paper, names in TRAINED.items() for name in names]
SIDE = {"inception_v3": 96}  # pixels; the others take 32, or 64 where an image is alone
LARGEST, IMAGES = 32, 16  # a normalization batch; a step where that leaves room


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet-format folder: 10 classes, 64 training and 10 validation images."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("val", 10)):
        for number in range(count):
            folder = root / split / f"class{number % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 60, (40, 40, 3)) + 15 * (number % 10)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.JPEG")
    return root


def shrunk(cfg: DictConfig) -> list[str]:
    """Overrides for a batch of the same kind that a CPU holds."""
    total, devices, norm = cfg.batch.total, cfg.batch.devices, cfg.batch.norm
    share = total // devices
    if cfg.norm.across_batch and norm > share:  # joined over devices
        share = min(share, 8)
        return [f"batch.total={2 * share}", "batch.devices=2", f"batch.norm={2 * share}"]
    groups = min(max(share // norm, 1), 2) if norm * 2 <= IMAGES else 1
    norm = norm if norm <= LARGEST else 4
    devices = min(devices, 2) if norm * groups * 2 <= IMAGES else 1
    return [
        f"batch.total={devices * groups * norm}",
        f"batch.devices={devices}",
        f"batch.norm={norm}",
    ]


def entries(table: Table) -> Iterator[tuple[Line, Line, tuple[str, ...]]]:
    """Every entry of a table at the paper's scale, its overrides shrunk to a test."""
    for row in table.rows:
        for column in table.columns:
            overrides = table.overrides("paper", row, column)
            cfg = config.compose(overrides)
            alone = cfg.batch.norm == 1  # one image needs more than one value a channel
            side = SIDE.get(cfg.model.name, 64 if alone else 32)
            small = ["data=folder", "data.workers=0", f"data.size={side}", "scale=smoke"]
            if "offline" in (cfg.norm.get("evaluations") or {}):
                small += ["norm.evaluations.offline.epochs=1", "norm.evaluations.offline.steps=1"]
            if cfg.task.get("evaluations"):
                small += ["task.evaluations.disturbed.seeds=1"]
            yield row, column, overlay([overrides, small, shrunk(cfg)])


def kind(cfg: DictConfig) -> str:
    """What makes two entries the same test: architecture, normalizer, batch, recipe."""
    keys = ["model", "norm", "recipe", *(["batch"] if cfg.norm.across_batch else [])]
    parts = [OmegaConf.to_container(cfg[key], resolve=True) for key in keys]
    if "batch" not in keys:
        parts[2].pop("optimizer")  # its rate follows from the batch
    return json.dumps(parts, sort_keys=True)


def two_steps(cfg: DictConfig) -> dict:
    folder = config.run_dir(cfg)
    folder.mkdir(parents=True)
    engine.run(cfg)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(("paper", "name"), NAMES, ids=lambda part: part)
def test_every_network_of_a_table_takes_two_steps(
    paper: str, name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(checkpoint, "save", lambda *_, **__: None)  # the slowest part
    done: set[str] = set()
    for row, column, overrides in entries(papers.load_table(paper, name)):
        cfg = config.compose(
            [*overrides, f"data.root={photos}", f"run.root={tmp_path}", "run.wandb=disabled"]
        )
        if kind(cfg) in done:
            continue
        done.add(kind(cfg))
        config.check(cfg)
        record = two_steps(cfg)
        where = f"{row.key}, {column.key}: {' '.join(overrides)}"
        assert record["status"] == "finished", where
        assert record["history"][-1]["step"] == 2, where
        assert math.isfinite(record["metrics"]["train_loss"]), where
        assert 0 <= record["metrics"]["error"] <= 100, where

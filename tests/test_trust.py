"""Files that somebody else wrote: they call nothing, fetch nothing and reach no other folder."""

import json
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import open_dict

from normrepro import engine, load
from normrepro.config import CONFIG_DIR, ConfigError, compose, run_dir, run_name
from normrepro.record import merge_records, read_records
from normrepro.training import checkpoint
from normrepro.trust import vetted
from tests.conftest import SMALL

ROOT = CONFIG_DIR.parent


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run."""
    cfg = compose([*SMALL, "norm=mabn", "scale=smoke", "run.wandb=disabled"])
    cfg.run.root = str(tmp_path_factory.mktemp("runs"))
    engine.run(cfg)
    return run_dir(cfg) / "last.pt"


@pytest.fixture
def altered(good: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the checkpoint anew with something else in its config."""

    def write(**changes: Any) -> Path:
        state = torch.load(good, weights_only=True)
        for path, value in changes.items():
            node = state["config"]
            *parents, last = path.split("__")
            for key in parents:
                node = node[key]
            node[last] = value
        torch.save(state, tmp_path / "last.pt")
        return tmp_path / "last.pt"

    return write


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.eval", "subprocess.run", "torch.os.makedirs", "torch.load"),
        *("torch.hub.load", "torch.hub.download_url_to_file", "torch.nn.Module.load_state_dict"),
        *("torchvision.datasets.utils.download_url", "timm.models.load_checkpoint"),
        *("normrepro.record.write_json", "normrepro.engine.run", "normrepro.cli.textwrap.dedent"),
        *("torch.nn.modules.container.operator.attrgetter", "torch.nn._reduction", "torch"),
        *("torch.utils.data.DataLoader", "hydra.utils.get_method", "../x", "", 7, None),
    ],
)
def test_a_target_that_is_no_layer_is_refused(
    altered: Callable, tmp_path: Path, target: Any
) -> None:
    canary = tmp_path / "canary"
    hostile = {"_target_": target, "_args_": [str(canary)], "name": str(canary)}
    for place in ("model__build", "norm__layer", "task__build", "recipe__optimizer"):
        with pytest.raises(ConfigError, match="refused"):
            load(altered(**{place: hostile}))
    with pytest.raises(ConfigError, match="refused"):  # however deep
        load(altered(eval={"a": [{"b": hostile}]}))
    assert not canary.exists()


@pytest.mark.parametrize(
    "target",
    [
        *("torch.nn.Linear", "torch.optim.AdamW", "torch.optim.lr_scheduler.CosineAnnealingLR"),
        *("torchvision.models.ResNet", "torchvision.datasets.FakeData", "timm.layers.DropPath"),
        *("torchvision.models.resnet18", "normrepro.norms.mabn.MABN", "normrepro.norms.MABN"),
    ],
)
def test_layers_data_sets_optimizers_and_schedules_are_not(target: str) -> None:
    assert vetted({"_target_": target, "x": 1}) == {"_target_": target, "x": 1}


def test_every_config_of_the_project_passes() -> None:
    for path in sorted(CONFIG_DIR.rglob("*.yaml")):
        text = (
            path.read_text(encoding="utf-8").replace("${model.name}", "resnet18").replace("${", "")
        )
        assert vetted(yaml.safe_load(text), path=path.stem) is not None


@pytest.mark.parametrize("name", ["hf_hub:evil/net", "hf-hub:evil/net", "local-dir:/tmp/x", "../x"])
def test_timm_models_come_from_timm_alone(altered: Callable, name: str) -> None:
    build = {"_target_": "timm.create_model", "model_name": name}
    with pytest.raises(ConfigError, match="no architecture of timm's own"):
        load(altered(model__build=build))


def test_weights_are_not_fetched() -> None:
    asked = {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}
    assert vetted(asked)["weights"] is None
    asked = {"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": True}
    asked |= {"checkpoint_path": "/etc/passwd", "pretrained_cfg": {"url": "http://x"}}
    found = vetted(asked)
    assert not any(found[key] for key in ("pretrained", "checkpoint_path", "pretrained_cfg"))


def test_interpolations_are_refused(altered: Callable) -> None:
    with pytest.raises(ConfigError, match="interpolation"):
        load(altered(data__root="${oc.env:HOME}"))


def test_a_package_can_be_trusted() -> None:
    mine = {"_target_": "my_norms.Layer"}
    assert vetted(mine, ["my_norms"]) == mine
    with pytest.raises(ConfigError, match=r"run\.trust"):
        vetted({"_target_": "my_norms_too.Layer"}, ["my_norms"])


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "last.pt"
    torch.save({"model": Bomb(canary)}, path)
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    path.write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(ValueError, match="damaged"):
        load(path)
    assert not canary.exists()


def test_a_zip_bomb_is_not_unpacked(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with (
        zipfile.ZipFile(good) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(ValueError, match="packed entries"):
        checkpoint.read(path)


def test_a_file_of_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="no checkpoint of a run"):
        load(tmp_path)


@given(st.text(max_size=30), st.sampled_from(["data", "model", "norm", "scale"]))
@settings(deadline=None, max_examples=30)
def test_no_name_leads_out_of_the_runs_folder(name: str, group: str) -> None:
    cfg = compose([])
    with open_dict(cfg):
        cfg[group].name = name.replace("$", "")
    assert run_dir(cfg).resolve().parent == Path(cfg.run.root).resolve()
    assert "/" not in run_name(cfg)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", ".hidden", "a/b", "a\n", "$(x)", "", 7]
)
def test_a_record_with_a_name_that_is_no_folder_is_no_record(tmp_path: Path, name: Any) -> None:
    path = tmp_path / "records.jsonl"
    merge_records(path, [{"run": "kept", "status": "finished", "metrics": {}}])
    with path.open("a") as file:
        file.write(json.dumps({"run": name, "status": "finished", "metrics": {}}) + "\n")
    assert list(read_records(path)) == ["kept"]


def test_nothing_goes_through_a_shell() -> None:
    found = subprocess.run(
        [
            "grep",
            "-rnE",
            "shell=True|os\\.(system|popen)",
            "--include=*.py",
            "normrepro",
            "scripts",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""

"""The plan: states, commands and GPU-hours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torchvision.models import get_model_weights

from normrepro import config, papers
from normrepro.config import ConfigError
from normrepro.launch import cost, plan
from normrepro.record import write_json
from normrepro.tables import Table
from normrepro.training import lock
from tests import made_up

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def table() -> Table:
    return papers.load_table("mabn", "table1")


def test_the_forward_pass_of_resnet50_costs_what_torchvision_says():
    cfg = config.compose(["data=imagenet", "norm=mabn"])
    reference = get_model_weights("resnet50").IMAGENET1K_V1.meta["_ops"]  # 1e9 multiply-adds
    assert cost.flops_per_image(cfg) / 2e9 == pytest.approx(reference, rel=0.01)


def test_images_and_hours_of_the_papers_run(table):
    cfg = config.compose(table.cells("paper", 1)[0].overrides)
    assert cost.images(cfg) == 600_000 * 256
    hours = cost.gpu_hours(cfg)
    assert hours == pytest.approx(3 * 8.18e9 * 600_000 * 256 / 10e12 / 3600, rel=0.01)
    assert cost.gpu_hours(cfg, throughput=20) == pytest.approx(hours / 2)


def test_images_of_a_run_in_epochs_drop_the_last_incomplete_batch():
    cfg = config.compose(["recipe.epochs=3", "batch.total=64"])
    assert cost.images(cfg) == 3 * 18 * 64  # 1,200 images are 18 batches of 64
    cfg = config.compose(["recipe.epochs=3", "batch.total=64", "scale=smoke"])
    assert cost.images(cfg) == 2 * 64


def test_data_of_unknown_size_needs_steps():
    cfg = config.compose(["data=folder", "recipe.steps=null", "recipe.epochs=3"])
    with pytest.raises(ConfigError, match=r"recipe\.steps"):
        cost.images(cfg)


def test_states_and_commands(table, tmp_path):
    cells = table.cells("paper", 1)
    records = {
        cells[0].run: made_up.record(cells[0], 23.0, "paper"),
        cells[1].run: made_up.record(cells[1], None, "paper"),
    }
    text = plan.render(table, "paper", records, gpus=8, runs=tmp_path)
    assert "2 of 4 runs are done; 2 are missing" in text
    states = [line.split(" | ")[3] for line in text.splitlines() if line.endswith("` |")]
    assert states == ["done", "diverged", "missing", "missing"]
    start = "torchrun --standalone --nproc_per_node=8 train.py "
    commands = [line for line in text.splitlines() if line.startswith("torchrun")]
    assert commands == [start + " ".join(cell.overrides) for cell in cells[2:]]


def test_the_commands_make_the_planned_runs(table):
    for cell in table.cells("proxy", [4]):
        start, script, *overrides = plan.command(cell)
        assert (start, script) == ("python", "train.py")
        assert config.run_name(config.compose(overrides)) == cell.run


def test_at_proxy_only_the_local_result_counts_elsewhere_a_record_does(table, tmp_path):
    for scale, counts in (("proxy", False), ("paper", True)):
        cell = table.cells(scale, 1)[0]
        record = made_up.record(cell, 1.0, scale)
        assert (plan.ended(cell, scale, {cell.run: record}, tmp_path) is not None) == counts
        assert plan.ended(cell, scale, {}, tmp_path) is None
        write_json(tmp_path / cell.run / "result.json", record)
        assert plan.ended(cell, scale, {}, tmp_path) == record


def test_cells_that_share_a_run_train_once(table):
    cells = table.cells("proxy", 2)
    assert plan.distinct([*cells, *cells]) == cells


def test_a_finished_table_has_no_commands(table, tmp_path):
    cells = table.cells("paper", 1)
    records = {cell.run: made_up.record(cell, 1.0, "paper") for cell in cells}
    text = plan.render(table, "paper", records, runs=tmp_path)
    assert "```" not in text
    assert "GPU-hours: 0.00 missing" in text


def test_the_script_prints_the_plan_and_names_what_it_does_not_know(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "plan.py"), "mabn"]
    where = ["--results", str(tmp_path), "--runs", str(tmp_path)]
    done = subprocess.run([*script, "table1", *where], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 of 24 runs are done" in done.stdout
    done = subprocess.run([*script, "table7x", *where], capture_output=True, text=True)
    assert done.returncode == 1
    assert "it has: table1" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_model_of_every_table_can_be_counted():
    for table in papers.load_all():
        for scale in table.scales:
            cfg = config.compose(table.cells(scale, 1)[0].overrides)
            assert cost.flops_per_image(cfg) > 0, OmegaConf.to_yaml(cfg.model)


def test_a_run_that_somebody_trains_is_running(table, tmp_path):
    cells = table.cells("paper", 1)
    with lock.hold(tmp_path / cells[2].run):
        text = plan.render(table, "paper", {}, runs=tmp_path)
    assert "0 of 4 runs are done; 1 are running; 3 are missing" in text
    assert f"{cells[2].run} is being trained by process {os.getpid()} on" in text
    assert " ".join(cells[2].overrides) not in text
    assert "1 are running" not in plan.render(table, "paper", {}, runs=tmp_path)


def test_the_overview_counts_shared_runs_once_and_says_what_cannot_be_run(table, tmp_path):
    cells = table.cells("paper", 1)
    records = {cells[0].run: made_up.record(cells[0], 23.0, "paper")}
    text = plan.overview([table, table], ["X Table 9: no"], "paper", records, runs=tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[1:6] for row in rows[2:]] == [["4", "1", "0", "0", "3"]] * 3
    alone = plan.overview([table], [], "paper", records, runs=tmp_path)
    assert alone.splitlines()[-1] in text  # the same hours
    assert "- X Table 9: no" in text


def test_what_is_asked_for_and_what_cannot_be_made():
    tables, others = plan.chosen("all", None, "paper")
    assert {"mabn", "cbn", "evalnorm", "xbnblock"} <= {table.paper for table in tables}
    assert "CBN Table 5: not runnable yet: needs the detection task" in others
    with pytest.raises(ConfigError, match="not runnable yet: needs the detection task"):
        plan.chosen("cbn", "table5", "paper")


def test_counts_are_remembered(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_memory", lambda: known)
    known: dict = {}
    hours = cost.run_hours(["recipe.epochs=3", "seed=1"])
    monkeypatch.setattr(cost, "_count", lambda overrides: pytest.fail("counted again"))
    assert cost.run_hours(["recipe.epochs=3", "seed=2"]) == hours > 0
    assert len(known) == 1

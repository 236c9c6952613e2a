"""Records of several machines: sound ones come together, conflicts are told, nothing is lost."""

import copy
import json
import subprocess
import sys

import pytest

from normrepro import config, merging, papers, report
from normrepro.record import ROOT, read_records
from tests import made_up


def sound(seed: int, error: float = 2.0) -> dict:
    """A made-up record whose name is that of its config."""
    table = papers.load_table("mabn", "table1")
    cell = table.cells("proxy", [seed])[0]
    record = made_up.record(cell, error)
    record["config"] = config_of(cell)
    return record


def config_of(cell) -> dict:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config.compose(cell.overrides), resolve=True)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return [sound(seed) for seed in range(2)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def merge(*arguments) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "merge_records.py"
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True
    )


def test_records_of_two_machines_come_together(tmp_path, records):
    there = copy.deepcopy(records[1])
    there["environment"] |= {"cpu": "another processor", "cores": 64}
    store = write(tmp_path / "records.jsonl", records[:1])
    done = merge(write(tmp_path / "there.jsonl", [records[0], there]), "--into", store)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 records" in done.stdout
    assert list(read_records(store)) == sorted(record["run"] for record in records)
    report.write_all([papers.load_table("mabn", "table1")], tmp_path)
    assert "another processor" in (tmp_path / "README.md").read_text()


def test_a_conflict_shows_both_values_and_overwrites_nothing(tmp_path, records):
    theirs = copy.deepcopy(records[0])
    theirs["metrics"]["error"] = 7.5
    store = write(tmp_path / "records.jsonl", records[:1])
    before = store.read_bytes()
    there = write(tmp_path / "there.jsonl", [theirs, records[1]])
    done = merge(there, "--into", store)
    assert done.returncode == 1
    assert "metrics.error 2.0 (ours) 7.5 (theirs)" in done.stderr
    kept = read_records(store)
    assert kept[theirs["run"]]["metrics"]["error"] == 2.0
    assert records[1]["run"] in kept
    write(store, records[:1])
    assert merge(there, "--into", store, "--keep", "ours").returncode == 0
    assert read_records(store)[theirs["run"]]["metrics"]["error"] == 2.0
    assert merge(there, "--into", store, "--keep", "theirs").returncode == 0
    assert read_records(store)[theirs["run"]]["metrics"]["error"] == 7.5
    assert before != store.read_bytes()


def test_times_and_machines_are_no_conflict(records):
    theirs = copy.deepcopy(records[0]) | {"seconds": 99.0, "environment": {"cpu": "other"}}
    theirs["history"][0]["images_per_second"] = 1.0
    assert merging.conflict(records[0], theirs) == ""
    theirs["history"][0]["error"] = 1.25
    assert "history.0.error 3.0 (ours) 1.25 (theirs)" in merging.conflict(records[0], theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("history"), "lacks history"),
        (lambda r: r.update(seconds="long"), "seconds is of the wrong type"),
        (lambda r: r.update(status="running"), "status 'running'"),
        (lambda r: r.update(metrics={}), "finished without metrics"),
        (lambda r: r["metrics"].update(error=float("nan")), "metrics.error is nan"),
        (lambda r: r["metrics"].update(error=None), "metrics.error is None, no number"),
        (lambda r: r["history"][1].update(loss=float("inf")), "history.1.loss is inf"),
        (lambda r: r["config"].update(seed=5), "its config is that of"),
        (lambda r: r["config"].pop("norm"), "its config cannot be read"),
        (lambda r: r.update(scale="paper"), "scale paper, but proxy in its config"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(records, change, message):
    record = copy.deepcopy(records[0])
    assert merging.problems(record) == []
    change(record)
    assert any(message in problem for problem in merging.problems(record))


def test_of_a_file_with_a_wrong_record_nothing_is_merged(tmp_path, records):
    wrong = copy.deepcopy(records[0]) | {"run": "another"}
    store = tmp_path / "records.jsonl"
    there = write(tmp_path / "there.jsonl", [records[1], wrong])
    done = merge(there, "--into", store)
    assert done.returncode == 2
    assert "there.jsonl:2: another: its config is that of" in done.stderr
    assert not store.exists()
    there.write_text(json.dumps(records[0]) + "\n{")
    assert merging.read(there)[1] == [f"{there}:2: no JSON"]

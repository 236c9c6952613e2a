"""Records: atomic, merged under a lock, robust against a file that was cut short."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest

from normrepro import record
from normrepro.record import RecordError, merge_records, read_records, read_result, write_json


def one(run: str, error: float = 1.0, **more) -> record.Record:
    return {"run": run, "status": "finished", "metrics": {"error": error}, "seconds": 1.0, **more}


def test_environment_says_what_ran():
    found = record.environment()
    for key in ("python", "torch", "torchvision", "timm", "hydra", "numpy", "cpu", "platform"):
        assert found[key], key
    assert found["cores"] >= 1
    assert {"commit", "dirty", "gpu"} <= set(found)
    json.dumps(found, allow_nan=False)


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    found = record.environment()
    assert found["commit"] is None
    assert found["dirty"] is None


def test_write_json_is_valid_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(path, {"loss": math.nan, "all": (1.5, math.inf)})
    write_json(path, {"loss": math.nan, "all": (2.5, -math.inf)})
    assert json.loads(path.read_text()) == {"loss": None, "all": [2.5, None]}
    assert [found.name for found in path.parent.iterdir()] == ["result.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"kept": True})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(record.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"kept": False})
    assert json.loads(path.read_text()) == {"kept": True}
    assert [found.name for found in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"run": "a"}', '{"run": "a", "status": "running"}', "null"]
)
def test_what_is_no_record_of_an_ended_run(tmp_path, text):
    path = tmp_path / "result.json"
    assert read_result(path) is None
    path.write_text(text)
    assert read_result(path) is None


def test_merge_sorts_one_line_per_run(tmp_path):
    path = tmp_path / "results" / "records.jsonl"
    assert merge_records(path, [one("b"), one("a")]) == []
    assert merge_records(path, [one("c", math.nan)]) == []
    lines = path.read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["a", "b", "c"]
    assert read_records(path)["c"]["metrics"]["error"] is None


def test_merge_says_what_a_replaced_record_differs_in(tmp_path):
    path = tmp_path / "records.jsonl"
    merge_records(path, [one("a", 1.0, history=[{"epoch": 1, "error": 1.0, "seconds": 1}])])
    new = one("a", 2.0, history=[{"epoch": 1, "error": 2.0, "seconds": 9}])
    (message,) = merge_records(path, [new])
    assert "a replaced" in message
    assert "metrics.error 1.0 -> 2.0" in message
    assert "history in 1 values" in message
    assert read_records(path)["a"] == new


def test_merging_the_same_numbers_again_changes_no_byte(tmp_path):
    path = tmp_path / "records.jsonl"
    merge_records(path, [one("a")])
    before = path.read_bytes()
    assert merge_records(path, [one("a") | {"seconds": 99.0}]) == []
    assert path.read_bytes() == before


def test_a_broken_last_line_is_left_out_and_mended(tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    merge_records(path, [one("a"), one("b")])
    path.write_text(path.read_text()[:-10])
    assert list(read_records(path)) == ["a"]
    assert "last line" in capsys.readouterr().err
    merge_records(path, [one("c")])
    assert list(read_records(path)) == ["a", "c"]
    assert capsys.readouterr().err.count("last line") == 1


def test_a_broken_line_in_the_middle_is_an_error_that_loses_nothing(tmp_path):
    path = tmp_path / "records.jsonl"
    merge_records(path, [one("a"), one("b")])
    path.write_text("garbage\n" + path.read_text())
    before = path.read_text()
    with pytest.raises(RecordError, match=r"records\.jsonl:1"):
        merge_records(path, [one("c")])
    assert path.read_text() == before


def merge_many(path: Path, who: str) -> None:
    for i in range(20):
        merge_records(path, [one(f"{who}{i:02d}")])


@pytest.mark.dist
def test_processes_that_merge_at_once_lose_no_record(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=merge_many, args=(path, who)) for who in "abc"]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    assert len(read_records(path)) == 60

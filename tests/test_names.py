"""The memory of run names: many records cost no composing, and what names depend on is in it."""

import hashlib
import shutil

import pytest

from normrepro import config, hints, names, papers
from normrepro.record import merge_records, read_records
from normrepro.report import index
from normrepro.tables import collect
from tests import made_up

SEEDS = 2501


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process of its own, as far as names go; returns what ends it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = []
    monkeypatch.setattr(names.atexit, "register", lambda *call: kept.append(call))

    def begin():
        for save, *arguments in kept:
            save(*arguments)
        kept.clear()
        forget()

    begin()
    yield begin
    monkeypatch.undo()
    forget()


def forget():
    for own in (names._memory, names._composed, names._chosen, names._group, names.fingerprint):
        own.cache_clear()


def test_ten_thousand_records_are_found_without_composing(tmp_path, monkeypatch, fresh):
    calls = []

    def made_up_name(overrides, seed):
        calls.append(overrides)
        return f"made-up-s{seed}-{hashlib.sha256(''.join(overrides).encode()).hexdigest()[:10]}"

    monkeypatch.setattr(names, "_run_name", made_up_name)
    table = papers.load_table("mabn", "table1")
    cells = table.cells("proxy", SEEDS)
    merge_records(tmp_path / "r.jsonl", [made_up.record(cell, 1.0) for cell in cells])
    assert len(calls) == len(cells) == 4 * SEEDS > 10_000
    fresh()
    records = read_records(tmp_path / "r.jsonl")
    state = index.state_of(table, records)
    assert {len(entry) for entry in state.found["proxy"].values()} == {SEEDS}
    assert len(calls) < len(cells) + 30  # a seed further, and the first of the other scales
    fresh()
    before = len(calls)
    collect(table, "proxy", records)
    assert len(calls) == before


def test_seeds_share_the_composing_and_names_are_those_of_config(fresh, monkeypatch):
    made, compose = [], config.compose
    monkeypatch.setattr(config, "compose", lambda own: made.append(own) or compose(own))
    overrides = ("norm=gn", "data=digits")
    found = [names.run_name(overrides, seed) for seed in (0, 1, 1)]
    assert len(made) == 1
    assert found[1:] == [config.run_name(compose([*overrides, "seed=1"]))] * 2
    fresh()
    assert names.run_name(overrides, 0) == found[0]
    assert len(made) == 1


def test_a_changed_file_makes_only_its_own_runs_new(tmp_path, monkeypatch, fresh):
    configs = tmp_path / "configs"
    shutil.copytree(hints.CONFIG_DIR, configs)
    monkeypatch.setattr(hints, "CONFIG_DIR", configs)
    rest = ("data=digits", "model=resnet_digits", "recipe=digits", "scale=proxy")

    def known(norm):
        forget()
        return names._chosen((f"norm={norm}", *rest))

    def change(path):
        with open(configs / path, "a") as file:
            file.write("# changed\n")

    bn, gn = known("bn"), known("gn")
    change("norm/gn.yaml")
    assert known("bn") == bn
    assert known("gn") != gn
    change("task/classification.yaml")  # the default: no override chooses it
    assert known("bn") != bn
    bn = known("bn")
    change("config.yaml")
    assert known("bn") != bn


def test_the_environment_and_the_code_are_part_of_it(tmp_path, monkeypatch, fresh):
    (tmp_path / "a.yaml").write_text("root: ${oc.env:SOME_FOLDER,x}")
    found = {names._hash([tmp_path / "a.yaml"])}
    monkeypatch.setenv("SOME_FOLDER", "y")
    found.add(names._hash([tmp_path / "a.yaml"]))
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    found.add(names._hash([tmp_path / "b.yaml"]))
    assert len(found) == 3
    before = names.fingerprint()
    forget()
    monkeypatch.setattr(names, "CODE", ())
    assert names.fingerprint() != before


def test_a_damaged_memory_costs_time_only(fresh, tmp_path):
    path = tmp_path / "cache" / "normrepro" / f"names-{names.fingerprint()}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    name = names.run_name(("norm=gn",), 0)
    fresh()
    assert names.run_name(("norm=gn",), 0) == name
    assert path.read_text().strip().startswith("{\n")

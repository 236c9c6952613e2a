"""The memory of run names: many records cost no composing, and what names depend on is in it."""

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
        names._memory.cache_clear()
        names._composed.cache_clear()

    begin()
    yield begin
    monkeypatch.undo()
    names._memory.cache_clear()


def test_ten_thousand_records_are_found_without_composing(tmp_path, monkeypatch, fresh):
    calls = []

    def made_up_name(overrides, seed):
        calls.append(overrides)
        return f"{'-'.join(overrides)}-s{seed}".replace("/", "_")

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


def test_a_change_of_configs_code_or_environment_is_another_memory(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("root: ${oc.env:SOME_FOLDER,x}")
    monkeypatch.setattr(hints, "CONFIG_DIR", tmp_path)
    found = {names.fingerprint()}
    monkeypatch.setenv("SOME_FOLDER", "y")
    found.add(names.fingerprint())
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    found.add(names.fingerprint())
    monkeypatch.setattr(names, "CODE", ())
    found.add(names.fingerprint())
    assert len(found) == 4


def test_a_damaged_memory_costs_time_only(fresh, tmp_path):
    path = tmp_path / "cache" / "normrepro" / f"names-{names.fingerprint()}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    name = names.run_name(("norm=gn",), 0)
    fresh()
    assert names.run_name(("norm=gn",), 0) == name
    assert path.read_text().strip().startswith("{\n")

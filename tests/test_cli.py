"""`train.py` as a person meets it: real processes; only the training itself is a stand-in."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normrepro import cli, config, hints

REPOSITORY = Path(__file__).resolve().parents[1]

# Python imports `sitecustomize` at its start: the place to put a stand-in for the engine.
ENGINE = """
import sys, types

def run(cfg):
    import json, threading, time
    from normrepro.config import ConfigError, run_dir
    if cfg.seed == 7:
        raise RuntimeError("the seventh seed")
    if cfg.seed == 8:
        raise ConfigError("no such folder: set data.root=...")
    if cfg.seed == 9:  # a thread that waits, as in a collective: an ordinary exit would wait too
        threading.Thread(target=time.sleep, args=(60,)).start()
        raise RuntimeError("the ninth seed")
    record = {"metrics": {"error": 12.5}}
    (run_dir(cfg) / "result.json").write_text(json.dumps(record))
    print("trained", cfg.norm.name, cfg.batch.norm)
    return 12.5

engine = types.ModuleType("normrepro.engine")
engine.run = run
sys.modules["normrepro.engine"] = engine
"""


class Shell:
    """Starts train.py in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "sitecustomize.py").write_text(ENGINE)

    def __call__(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.folder), str(REPOSITORY)])
        clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "train.py"), *arguments],
            cwd=self.folder,
            env={**clean, "PYTHONPATH": path, **env},
            capture_output=True,
            text=True,
            timeout=50,
        )

    @property
    def runs(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("runs/*/result.json"))


@pytest.fixture
def train(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def name(*overrides: str) -> str:
    return config.run_name(config.compose(overrides))


def test_help_is_a_page_for_a_person_and_quick(train: Shell) -> None:
    began = time.monotonic()
    done = train("--help")
    assert time.monotonic() - began < 2
    assert done.returncode == 0
    for group, choices in hints.groups().items():
        for choice in choices:
            assert f"{group}={choice} " in done.stdout
    for word in ("batch.total", "batch.devices", "batch.norm", "-m norm=bn,", "torchrun"):
        assert word in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100
    assert not (train.folder / "runs").exists()


def test_every_choice_says_in_a_line_what_it_is() -> None:
    silent = [
        f"{group}={choice}"
        for group, choices in hints.groups().items()
        for choice in choices
        if not cli.describe(hints.CONFIG_DIR / group / f"{choice}.yaml")
    ]
    assert not silent, f"no comment on the first lines of {silent}"


def test_the_examples_of_the_help_page_compose() -> None:
    examples = [
        line.partition("train.py ")[2].split()
        for line in cli.INTRODUCTION.partition("Examples")[2].splitlines()
        if "train.py" in line
    ]
    assert len(examples) == 5
    for example in examples:
        cli.check_command_line(example)


def test_nothing_of_this_imports_torch() -> None:
    code = "import sys, train; from normrepro import config; config.compose(['norm=mabn']); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=50).returncode == 0


def test_a_run_lands_in_the_folder_of_its_name_and_is_not_made_twice(train: Shell) -> None:
    first = train("norm=mabn", "batch.norm=4")
    assert (first.returncode, first.stdout) == (0, "trained mabn 4\n"), first.stderr
    assert train.runs == [name("norm=mabn", "batch.norm=4")]
    again = train("norm=mabn", "batch.norm=4", "run.threads=2")
    assert (again.returncode, again.stdout) == (0, "")
    assert "is finished (error 12.5): nothing to do" in again.stderr
    log = train.folder / "runs" / train.runs[0] / "train.log"
    assert "is finished" in log.read_text()
    assert (log.parent / ".hydra" / "overrides.yaml").exists()


def test_a_damaged_result_is_named_and_kept(train: Shell) -> None:
    result = train.folder / "runs" / name() / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"metrics": {"err')
    done = train()
    assert done.returncode == 2
    assert f"runs/{name()}/result.json is damaged" in done.stderr
    assert result.read_text() == '{"metrics": {"err'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["norm=mban"], "did you mean norm=mabn"),
        (["-m", "norm=bn,mabn,gnn"], "did you mean norm=gn"),
        (["-m", "norm=bn,mabn", "batch.norm=2,four"], "batch.norm must be a number"),
        (["batch.norm=3"], "batch.norm=3 does not divide the 32 images per device"),
        (["seed=8"], "no such folder: set data.root=..."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    train: Shell, arguments: list[str], message: str
) -> None:
    done = train(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert train.runs == []


def test_a_bad_config_leaves_no_folder(train: Shell) -> None:
    assert train("batch.norm=3").returncode == 2
    assert not (train.folder / "runs").exists()


def test_an_exception_keeps_its_traceback(train: Shell) -> None:
    done = train("seed=7")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: the seventh seed" in done.stderr


def test_the_sweep_of_the_readme(train: Shell) -> None:
    done = train("-m", "norm=bn,brn,mabn,gn", "batch.norm=2,4,8")
    assert done.returncode == 0, done.stderr
    batch = [name(f"norm={n}", f"batch.norm={b}") for n in ("bn", "brn", "mabn") for b in (2, 4, 8)]
    assert train.runs == sorted([*batch, name("norm=gn")])  # gn is one run, whatever batch.norm
    assert done.stdout.count("trained") == 10


def test_a_failing_job_stops_no_other_and_shows_in_the_exit_code(train: Shell) -> None:
    done = train("-m", "seed=7,8,1", "batch.norm=3,2")
    assert done.returncode == 1
    assert train.runs == [name("seed=1")]
    assert "RuntimeError: the seventh seed" in done.stderr
    assert "error: no such folder" in done.stderr
    assert done.stderr.count("batch.norm=3 does not divide the 32 images") == 3
    assert "5 of the sweep's runs failed" in done.stderr.splitlines()[-1]


def test_a_rank_that_fails_ends_at_once_with_its_traceback(train: Shell) -> None:
    began = time.monotonic()
    done = train("seed=9", RANK="1", WORLD_SIZE="2")
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert "error: rank 1 of" in done.stderr
    assert "RuntimeError: the ninth seed" in done.stderr


def test_only_rank_zero_writes_and_talks(train: Shell) -> None:
    folder = train.folder / "runs" / name()
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"metrics": {"error": 1.0}}))
    done = train(RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in folder.iterdir()] == ["result.json"]
    assert "is finished" in train(RANK="0", WORLD_SIZE="2").stderr
    assert sorted(path.name for path in folder.iterdir()) == [".hydra", "result.json", "train.log"]


def test_a_world_that_does_not_fit_is_refused(train: Shell) -> None:
    done = train(RANK="0", WORLD_SIZE="3")
    assert done.returncode == 2
    assert "3 processes cannot share batch.devices=2 evenly" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=1"], [["seed=1"]]),
        (
            ["norm=bn,gn", "seed=0,1"],
            [["norm=bn", "seed=0"], ["norm=gn", "seed=0"], ["norm=bn", "seed=1"]],
        ),
        (["seed=range(0,3)"], [["seed=0"], ["seed=1"], ["seed=2"]]),
        (["norm=glob(mabn*)"], [["norm=mabn"], ["norm=mabn_official"]]),
    ],
)
def test_each_value_of_a_sweep_is_tried_once(
    overrides: list[str], expected: list[list[str]]
) -> None:
    assert list(cli.one_at_a_time(overrides)) == expected

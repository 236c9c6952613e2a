"""CONTRIBUTING's worked example: its three files alone make a normalizer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, environment

BLOCK = re.compile(r"in `([\w/.]+)`[^`]*?:\n\n```(?:python|yaml)\n(.*?)```", re.DOTALL)
PARTS = ("normrepro", "configs", "tests", "train.py", "pyproject.toml")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the example's files."""
    root = tmp_path_factory.mktemp("contributing")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, root / part)
    files = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()))
    assert list(files) == [
        "normrepro/norms/mean_only.py",
        "configs/norm/mean_only.yaml",
        "tests/norms/test_mean_only.py",
    ]
    for path, text in files.items():
        assert not (root / path).exists()
        (root / path).write_text(text)
    return root


def run(root: Path, *command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=environment(PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_its_tests_and_the_contract_pass(copy: Path) -> None:
    tests = ["test_mean_only.py", "test_registry.py", "test_registry_numerics.py"]
    paths = [f"tests/norms/{name}" for name in tests]
    said = run(copy, "-m", "pytest", *paths, "-k", "mean_only", "-p", "no:cacheprovider")
    passed = re.search(r"(\d+) passed", said) or re.search(r"^(\.+) +\[100%\]", said, re.MULTILINE)
    assert passed is not None, said
    assert "skipped" not in said
    count = int(passed[1]) if passed[1].isdigit() else len(passed[1])
    assert count > 25


@pytest.mark.slow
def test_it_trains(copy: Path) -> None:
    run(copy, "train.py", "norm=mean_only", "scale=smoke", *SMALL, "run.root=runs")
    (folder,) = (copy / "runs").iterdir()
    assert "mean_only" in folder.name
    assert (folder / "result.json").is_file()


def test_it_is_in_style(copy: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        run(copy, "-m", "ruff", *command, *(str(f) for f in copy.rglob("*mean_only.py")))

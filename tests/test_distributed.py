"""World size drops out of the science, and a rank that fails takes the job with it."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, SMALL, only_run, weights
from tests.test_resume import kill_somewhere

pytestmark = pytest.mark.dist
STEPS = [
    "precision=float64",
    "recipe.epochs=null",
    "recipe.steps=30",
    "batch.total=64",
    "batch.devices=2",
]


@pytest.mark.parametrize(
    ("norm", "batch"),
    [
        ("bn", 2),
        ("mabn", 2),
        pytest.param("bn", 64, marks=pytest.mark.slow),  # one normalization batch over both devices
        pytest.param("brn", 2, marks=pytest.mark.slow),
        pytest.param("mabn_official", 2, marks=pytest.mark.slow),
        pytest.param("cbn", 32, marks=pytest.mark.slow),
        pytest.param("evalnorm", 2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_the_weights_of_two_replicas(
    start: Callable, tmp_path: Path, norm: str, batch: int
) -> None:
    for processes in (1, 2):
        done = start(
            f"norm={norm}", f"batch.norm={batch}", *STEPS, root=f"p{processes}", processes=processes
        )
        assert done.returncode == 0, done.stderr
    one, two = (weights(only_run(tmp_path / f"p{n}")) for n in (1, 2))
    assert one.keys() == two.keys()
    assert any(v.dim() > 1 and v.shape[0] == 2 for k, v in one.items() if "running" in k)
    for name in one:
        scale = one[name].abs().max() if one[name].numel() else 0
        torch.testing.assert_close(two[name], one[name], rtol=1e-12, atol=float(scale) * 1e-12)


def test_a_failing_rank_ends_the_job_with_its_traceback(start: Callable, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import builtins, threading\n"
        "    import normrepro.training.trainer as engine\n"
        "    real = engine.Trainer.step\n"
        "    def step(self, x, y):\n"
        "        if self.state.step == 3:\n"
        "            raise ArithmeticError('rank 1 breaks here')\n"
        "        return real(self, x, y)\n"
        "    engine.Trainer.step = step\n"
    )
    begin = time.monotonic()
    done = start("norm=bn", "batch.devices=2", processes=2, PYTHONPATH=f"{site}:{ROOT}")
    assert done.returncode != 0
    assert "rank 1 breaks here" in done.stderr
    assert "Traceback" in done.stderr
    assert time.monotonic() - begin < 60
    assert not list((tmp_path / "runs").glob("*/result.json"))


def test_a_world_that_does_not_divide_the_devices_is_refused(start: Callable) -> None:
    done = start("norm=bn", "batch.devices=1", processes=2)
    assert done.returncode != 0
    assert "batch.devices=1" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["bn", "mabn"])
def test_a_run_goes_on_with_another_number_of_processes(
    start: Callable, tmp_path: Path, norm: str
) -> None:
    arguments = [f"norm={norm}", *STEPS, "run.save_every=0"]
    assert start(*arguments, root="whole").returncode == 0
    moved = tmp_path / "moved"
    kill_somewhere([*SMALL, *arguments, f"run.root={moved}"], moved, 5)
    done = start(*arguments, root="moved", processes=2)
    assert done.returncode == 0, done.stderr
    assert "goes on at step" in done.stderr
    one, two = weights(only_run(tmp_path / "whole")), weights(only_run(moved))
    for name in one:
        scale = one[name].abs().max() if one[name].numel() else 0
        torch.testing.assert_close(two[name], one[name], rtol=1e-12, atol=float(scale) * 1e-12)

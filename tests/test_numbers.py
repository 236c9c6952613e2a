"""Numbers that are not finite: found in their step, recorded with step and layer, never retried."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import train
from normrepro import engine
from normrepro.config import compose, run_dir
from normrepro.training import build
from normrepro.training.finite import broken
from tests.conftest import SMALL

Fault = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Train a network in which a layer's output is replaced from some step on."""

    def start(name: str, fault: Fault, first: int, last: int, *overrides: str) -> dict:
        real = build.model

        def model(*arguments: object) -> nn.Module:
            net, calls = real(*arguments), [0]

            def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
                if not module.training:
                    return None
                # the batch is run once more to find the layer: that call repeats the last step
                calls[0] += 1
                return (
                    fault(output) if first <= min(calls[0], last) and calls[0] <= last + 1 else None
                )

            net.get_submodule(name).register_forward_hook(hook)
            return net

        monkeypatch.setattr(build, "model", model)
        cfg = compose([*SMALL, "norm=bn", "recipe.epochs=2", *overrides, f"run.root={tmp_path}"])
        run_dir(cfg).mkdir(parents=True, exist_ok=True)
        engine.run(cfg)
        assert train.finished(cfg) is not None  # whatever its end, it is not tried again
        return json.loads((run_dir(cfg) / "result.json").read_text())

    return start


def nan(output: Tensor) -> Tensor:
    return output * math.nan


def bad_gradient(output: Tensor) -> Tensor:
    output.register_hook(lambda gradient: gradient * math.inf)
    return output


@pytest.mark.parametrize("first", [1, 6, 16])
def test_a_loss_that_is_nan_names_step_and_layer(run: Callable, first: int) -> None:
    record = run("layer2.0.conv1", nan, first, first)
    assert record["status"] == "diverged"
    assert record["diverged"] == {
        "step": first,
        "epoch": 1 if first <= 8 else 2,
        "layer": "layer2.0.conv1 (output)",
        "reason": "the loss is nan",
    }


def test_statistics_that_overflow_are_found_while_the_loss_is_finite(run: Callable) -> None:
    # The variance is infinite, the normalized value 0 and the loss an ordinary number.
    record = run("layer1.0.conv1", lambda x: x * 1e25, 5, 5)
    assert record["status"] == "diverged"
    assert record["diverged"]["reason"] == "running statistics are not finite"
    assert record["diverged"]["step"] == 5
    assert record["diverged"]["layer"] == "layer1.0.bn1 (running_var)"


def test_gradients_that_are_not_finite_end_the_run_one_step_later(run: Callable) -> None:
    record = run("layer2.0.bn1", bad_gradient, 4, 4)
    assert record["status"] == "diverged"
    assert record["diverged"]["step"] == 5
    assert record["diverged"]["layer"] == "conv1 (weight)"


def test_weights_that_the_last_step_broke_are_not_judged(run: Callable) -> None:
    record = run("layer2.0.bn1", bad_gradient, 16, 16)
    assert record["status"] == "diverged"
    assert record["diverged"]["step"] == 16
    assert record["diverged"]["reason"] == "weights or statistics are not finite"
    assert [row["epoch"] for row in record["history"]] == [1]


def test_a_streak_of_overflows_is_divergence(run: Callable) -> None:
    record = run("layer2.0.bn1", bad_gradient, 4, 99, "precision=float16", "overflows=3")
    assert record["status"] == "diverged"
    assert record["diverged"]["reason"] == "float16 gradients overflowed in 3 steps in a row"
    assert record["diverged"]["step"] == 6
    assert record["diverged"]["layer"] == "layer2.0.bn1 (gradient of the output)"


def test_a_shorter_streak_of_overflows_is_survived(run: Callable) -> None:
    record = run("layer2.0.bn1", bad_gradient, 4, 5, "precision=float16", "overflows=4")
    assert record["status"] == "finished"
    assert math.isfinite(record["metrics"]["loss"])


def test_the_first_broken_tensor_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert broken(model) is None
    model[1].running_var[1] = math.inf
    assert broken(model) == "1 (running_var)"
    with torch.no_grad():
        model[0].bias[0] = math.nan
    assert broken(model) == "0 (bias)"

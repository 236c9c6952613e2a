"""Further evaluations of one training: exact, and without a trace in it."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normrepro import convert, engine, norms
from normrepro.config import compose, run_dir
from normrepro.training import evaluations
from normrepro.training.judge import Judge
from tests.conftest import SMALL, only_run, result, same_bits, weights
from tests.norms.registry import draw

SHORT = ["norm=evalnorm", "norm.evaluations.offline.steps=3"]
NAMES = ("ema", "rule", "inverse", "root", "cube", "offline")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def run(root: Path, *overrides: str) -> dict:
    cfg = compose([*SMALL, "recipe.epochs=2", *overrides, f"run.root={root}"])
    run_dir(cfg).mkdir(parents=True, exist_ok=True)
    engine.run(cfg)
    return json.loads((run_dir(cfg) / "result.json").read_text())


def trained(norm: str, group: int = 2) -> nn.Module:
    """A net of two norms after a few steps."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)]
    parts += [nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = convert(nn.Sequential(*parts), norm, group=group).double()
    for i in range(5):
        with norms.step(model), torch.no_grad():
            model(draw(8, 2, 6, 6, seed=i) * 2 + 1)
    return model


def batches() -> Iterator[tuple[Tensor, None]]:
    for seed in range(100, 200):
        yield draw(8, 2, 6, 6, seed=seed) * 2 + 1, None


def outputs(model: nn.Module) -> Callable[[], dict[str, Tensor]]:
    """An evaluation whose sums are the outputs themselves."""

    def evaluate() -> dict[str, Tensor]:
        modes = [m.training for m in model.modules()]
        model.eval()
        with torch.no_grad():
            found = model(draw(6, 2, 6, 6, seed=7))
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        return {"y": found}

    return evaluate


def test_rules_are_alpha_and_beta_by_hand() -> None:
    model, by_hand = trained("evalnorm"), trained("evalnorm")
    rules = {"ema": "ema", "rule": "1/B^2", "inverse": "1/B", "root": "1/sqrt(B)", "cube": "1/B^3"}
    values = {"ema": 0.0, "rule": 0.25, "inverse": 0.5, "root": 2**-0.5, "cube": 0.125}
    one = [lambda m, b: evaluations.rules(m, b, rules)]
    found = evaluations.judge(one, model, batches, outputs(model))
    assert list(found) == list(rules)
    for name, value in values.items():
        for layer in (m for m in by_hand.modules() if isinstance(m, norms.EvalNorm)):
            layer.alpha.fill_(value)
            layer.beta.fill_(value)
        torch.testing.assert_close(found[name]["y"], outputs(by_hand)()["y"], rtol=1e-12, atol=0)
    assert same_bits(model.state_dict(), trained("evalnorm").state_dict())


def test_offline_estimation_is_taken_back() -> None:
    model, other = trained("evalnorm"), trained("evalnorm")
    before = deepcopy(model.state_dict())
    one = [lambda m, b: evaluations.offline(m, b, epochs=2, steps=3, lr=0.2)]
    found = evaluations.judge(one, model, batches, outputs(model))
    stream = batches()
    six = [list(islice(stream, 3)) for _ in range(2)]
    layers = [m for m in other.modules() if isinstance(m, norms.EvalNorm)]
    for layer in layers:
        layer.restart()
    for epoch, stretch in enumerate(six):  # fit_evalnorm by hand: nothing but alpha and beta moves
        for x, _ in stretch:
            other.eval()
            for layer in layers:
                layer.train()
                layer.fitting, layer.lr = True, 0.2 * (1 - epoch / 2)
            with norms.step(other), torch.no_grad():
                other(x)
    for layer in layers:
        layer.fitting = False
        assert layer.alpha not in (0, 0.25, 1)
    torch.testing.assert_close(found["offline"]["y"], outputs(other)()["y"], rtol=1e-12, atol=1e-12)
    assert same_bits(model.state_dict(), before)
    assert all(m.training for m in model.modules())


def test_disturbed_errors_are_means_over_draws() -> None:
    model = trained("bn")
    options = {"deltas": [0.1, 0.5], "seeds": 3, "match": ".", "first": None}
    one = [lambda m, b: evaluations.disturbed(m, b, **options)]
    found = evaluations.judge(one, model, batches, outputs(model))
    assert list(found) == ["disturbed_0.1", "disturbed_0.5"]
    total = torch.zeros(6, 4, dtype=torch.float64)
    for seed in range(3):
        with norms.disturbed(model, 0.5, seed, match=".", first=None):
            total += outputs(model)()["y"]
    torch.testing.assert_close(found["disturbed_0.5"]["y"], total, rtol=1e-12, atol=1e-12)
    far, near = (found[f"disturbed_{d}"]["y"] / 3 - outputs(model)()["y"] for d in (0.5, 0.1))
    assert far.norm() > near.norm() > 0
    assert same_bits(model.state_dict(), trained("bn").state_dict())


def test_one_training_has_all_of_evalnorms_rows_and_the_bits_it_had_before(tmp_path: Path) -> None:
    with_them = run(tmp_path / "a", *SHORT, "batch.norm=4")
    without = run(
        tmp_path / "b", "norm=evalnorm", "batch.norm=4", "~norm.evaluations", "~norm.diagnostics"
    )
    assert same_bits(weights(only_run(tmp_path / "a")), weights(only_run(tmp_path / "b")))
    metrics, plain = with_them["metrics"], without["metrics"]
    assert {k: v for k, v in metrics.items() if k in plain} == plain
    row = with_them["history"][-1]
    assert len(row["alpha"]) == len(row["beta"]) == len(with_them["layers"])
    assert "alpha" not in with_them["history"][0]
    assert min(row["alpha"][1:]) < 1 / 16 < max(row["alpha"][1:])  # it began at the rule's value
    added = {f"{key}_{name}" for name in NAMES for key in ("error", "loss", "top5_error")}
    assert metrics.keys() - plain.keys() == added
    assert with_them["run"] != without["run"]  # what is recorded is part of a run's identity
    assert len({metrics[f"loss_{name}"] for name in NAMES} | {metrics["loss"]}) == 7


def test_ema_is_batch_norms_own_evaluation(tmp_path: Path) -> None:
    en, bn = (
        run(tmp_path, f"norm={norm}", "batch.norm=4")["metrics"] for norm in ("evalnorm", "bn")
    )
    assert en["error_ema"] == bn["error"]
    assert en["loss_ema"] == bn["loss"]


def test_a_run_killed_among_its_further_evaluations_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", *SHORT)
    real, calls = Judge.sums, []

    def killed(self: Judge, watched: bool = False) -> dict[str, Tensor]:
        calls.append(watched)
        if len(calls) == 2 + len(NAMES):  # two epochs, and all of them but the last
            raise KeyboardInterrupt
        return real(self, watched)

    monkeypatch.setattr(Judge, "sums", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", *SHORT)
    monkeypatch.setattr(Judge, "sums", real)
    run(tmp_path / "killed", *SHORT)
    assert calls == [True, True] + [False] * len(NAMES)
    one, two = (only_run(tmp_path / name) for name in ("whole", "killed"))
    assert result(one) == result(two)
    assert same_bits(weights(one), weights(two))


def test_the_disturbed_task_judges_xbnblock(tmp_path: Path) -> None:
    settings = ["norm=bn", "task=disturbed", "model=bottleneck_digits"]
    settings += ["data.source.train_images=64", "data.source.val_images=50", "batch.total=32"]
    cfg = compose([*settings, "recipe.epochs=1", f"run.root={tmp_path}"])
    run_dir(cfg).mkdir(parents=True)
    engine.run(cfg)
    metrics = json.loads((run_dir(cfg) / "result.json").read_text())["metrics"]
    grid = [metrics[f"error_disturbed_0.{d}"] for d in range(1, 6)]
    assert len(set(grid)) > 1
    assert all(0 <= error <= 100 for error in grid)


@pytest.mark.dist
@pytest.mark.slow
def test_further_evaluations_do_not_depend_on_the_number_of_processes(
    start: Callable, tmp_path: Path
) -> None:
    arguments = ["norm=evalnorm", "precision=float64", "recipe.epochs=1", "batch.devices=2"]
    for processes in (1, 2):
        done = start(*arguments, root=f"p{processes}", processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (result(only_run(tmp_path / f"p{n}"))["metrics"] for n in (1, 2))
    assert one.keys() == two.keys()
    assert {f"loss_{name}" for name in NAMES} < one.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-9), key

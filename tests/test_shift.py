"""Estimation shift against a slow reference, and that looking on changes nothing."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normrepro import convert, engine, norms
from normrepro.config import compose, run_dir
from normrepro.data.base import Batches
from normrepro.diagnostics import Epoch, TrainError, layer_names
from normrepro.diagnostics.shift import Shift
from normrepro.distributed import Ranks
from tests.conftest import SMALL, only_run, result, same_bits, weights
from tests.norms.registry import draw

ALONE = Ranks(0, 1, torch.device("cpu"))


def net(norm: str = "bn", group: int | None = None, momentum: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4)]
    model = convert(nn.Sequential(*parts), norm, group=group, replicas=1).double()
    for layer in model.modules():
        if isinstance(layer, norms.BatchNorm):
            layer.momentum = momentum
    return model


def fed(model: nn.Module, x: Tensor, steps: int) -> nn.Module:
    for _ in range(steps):
        with norms.step(model), torch.no_grad():
            model(x)
    return model


def cut(x: Tensor, sizes: Iterable[int]) -> Callable[[], Batches]:
    labels = torch.zeros(len(x), dtype=torch.long)
    return lambda: zip(x.split(list(sizes)), labels.split(list(sizes)), strict=True)


def no_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    raise AssertionError("not asked for")


def measured(model: nn.Module, shift: Shift, train: Tensor, test: Callable[[], Batches]) -> dict:
    with shift.watch(model.eval()), torch.no_grad():
        for x, _ in test():
            model(x)
    images = cut(train, [len(train)])
    return shift.report(Epoch(model.train(), ALONE, images, images, test, no_loss))


def reference(model: nn.Sequential, train: Tensor, test: Tensor, training: bool = False) -> dict:
    """Definitions 1 and 2, one channel after another, on the whole set."""
    rows = {"esm_mean": [], "esm_std": []}
    rows["esm_mean"].append(float((train.mean(0) - test.mean(0)).norm()))
    std = [s.var(0, unbiased=False).sqrt() for s in (train, test)]
    rows["esm_std"].append(float((std[0] - std[1]).norm()))
    x = test
    for layer in model.eval():
        if isinstance(layer, norms.Normalizer):
            mean, std = 0.0, 0.0
            for c in range(x.shape[1]):
                values = x[:, c].tolist()
                m = sum(values) / len(values)
                v = sum((value - m) ** 2 for value in values) / len(values)
                mean += (float(layer.running_mean[c]) - m) ** 2
                std += (float(layer.running_var[c]) ** 0.5 - v**0.5) ** 2
            rows["esm_mean"].append(mean**0.5)
            rows["esm_std"].append(std**0.5)
            if training:
                x = (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()
                x = x * layer.weight + layer.bias
                continue
        with torch.no_grad():
            x = layer(x)
    return rows


def close(found: dict, wanted: dict, tolerance: float = 1e-10) -> None:
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert found[key] == pytest.approx(wanted[key], rel=tolerance), key


@pytest.mark.parametrize("sizes", [[40], [7, 1, 32], [20, 20]])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_shift_is_definitions_1_and_2(sizes: list[int], offset: float) -> None:
    train, test = draw(16, 3, seed=1) + offset, 2 * draw(40, 3, seed=2) + 0.5 + offset
    model = fed(net(), train, 3)
    found = measured(model, Shift(), train, cut(test, sizes))
    close(found, reference(model, train, test), 1e-10 if offset == 0 else 1e-6)
    assert min(found["esm_std"]) > 0.01
    assert layer_names(model) == ["input", "1", "4"]


def test_the_other_reading_takes_the_layers_before_in_training_mode() -> None:
    """X-16: the first layer's shift is the same, later ones' are not."""
    train, test = draw(16, 3, seed=1), 2 * draw(40, 3, seed=2) + 0.5
    model = fed(net(group=16), train, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = measured(model, Shift("training"), train, cut(test, [30, 10]))
    close(found, reference(model, train, test, training=True))
    usual = measured(model, Shift(), train, cut(test, [30, 10]))
    assert found["esm_std"][:2] == pytest.approx(usual["esm_std"][:2], rel=1e-12)
    assert found["esm_std"][2] != pytest.approx(usual["esm_std"][2], rel=1e-3)
    assert same_bits(dict(model.state_dict()), before)
    assert model[1].group == 16
    with pytest.raises(ValueError, match="must be 'evaluation' or 'training'"):
        Shift("both")


def test_shift_vanishes_where_training_and_test_set_are_one() -> None:
    """X-3, X-4: by a factor 1 - alpha a step, down to the unbiased variance's share."""
    x, n = draw(50, 3, seed=1), 50
    shifts = [measured(fed(net(), x, steps), Shift(), x, cut(x, [50])) for steps in (10, 11, 60)]
    assert shifts[1]["esm_mean"][1] == pytest.approx(shifts[0]["esm_mean"][1] / 2, rel=1e-9)
    assert shifts[2]["esm_mean"][:2] == pytest.approx([0, 0], abs=1e-12)
    model = net()
    with torch.no_grad():
        sigma = model[0](x).var(0, unbiased=False).sqrt()
    left = float(sigma.norm()) * ((n / (n - 1)) ** 0.5 - 1)
    assert shifts[2]["esm_std"][:2] == pytest.approx([0, left], abs=1e-12)


def test_a_layer_without_running_statistics_has_no_shift() -> None:
    train, test = draw(16, 3, seed=1), draw(40, 3, seed=2)
    mixed = {"layer": {"_target_": "normrepro.norms.LayerNorm", "_partial_": True}}
    bn = {"_target_": "normrepro.norms.BatchNorm", "_partial_": True}
    model = net(mixed | {"rules": [{"match": ".", "every": 2, "layer": bn}]})
    found = measured(fed(model, train, 3), Shift(), train, cut(test, [40]))
    assert [value is None for value in found["esm_std"]] == [False, True, False]


def test_training_error_is_by_batch_statistics_and_leaves_no_trace() -> None:
    x, labels = draw(24, 3, seed=1), torch.arange(24) % 4
    model = fed(net(group=6), draw(24, 3, seed=3), 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def batches() -> Batches:
        return zip(x.split(12), labels.split(12), strict=True)

    found = TrainError().report(Epoch(model, ALONE, batches, batches, batches, no_loss))
    with torch.no_grad():
        y = model[4](model[3](model[2](model[1](model[0](x)))))
    wrong = (y.argmax(1) != labels).sum().item()
    assert found == {"train_error": 100 * wrong / 24}
    model.load_state_dict(before)
    TrainError().report(Epoch(model, ALONE, batches, batches, batches, no_loss))
    assert same_bits(dict(model.state_dict()), before)


def run(root: Path, *overrides: str) -> dict:
    cfg = compose([*SMALL, "recipe.epochs=2", *overrides, f"run.root={root}"])
    run_dir(cfg).mkdir(parents=True, exist_ok=True)
    engine.run(cfg)
    return json.loads((run_dir(cfg) / "result.json").read_text())


def test_looking_on_leaves_the_trainings_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    looked = run(tmp_path / "a", "task=shift")
    plain = run(tmp_path / "b")
    assert same_bits(weights(only_run(tmp_path / "a")), weights(only_run(tmp_path / "b")))
    assert looked["metrics"] == plain["metrics"]
    assert "layers" not in plain
    row = looked["history"][-1]
    assert len(row["esm_mean"]) == len(row["esm_std"]) == len(looked["layers"])
    assert looked["layers"][:2] == ["input", "bn1"]
    assert 0 < row["train_error"] < 100


@pytest.mark.dist
@pytest.mark.slow
def test_shift_does_not_depend_on_the_number_of_processes(start: Callable, tmp_path: Path) -> None:
    arguments = ["task=shift", "precision=float64", "recipe.epochs=2"]
    for processes in (1, 2):
        done = start(*arguments, "batch.devices=2", root=f"p{processes}", processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (result(only_run(tmp_path / f"p{n}"))["history"][-1] for n in (1, 2))
    assert len(one["esm_std"]) == 8
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-9), key

"""What a run may record of its layers, against slow references in float64."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrepro import convert, engine, norms
from normrepro.config import ConfigError, compose, run_dir
from normrepro.data.base import Batches
from normrepro.diagnostics import Coefficients, Epoch
from normrepro.diagnostics.batch_statistics import BatchStatistics
from normrepro.diagnostics.densities import Densities
from normrepro.diagnostics.gradient_ratios import GradientRatios
from normrepro.distributed import Ranks
from tests.conftest import SMALL, only_run, result, same_bits, weights
from tests.norms.registry import draw


def net(norm: str | dict, group: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 2)]
    parts += [nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)]
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)]
    model = convert(nn.Sequential(*parts), norm, group=group).double()
    with torch.no_grad():
        for layer in (1, 4, 7):
            model[layer].weight.copy_(1 + 0.3 * draw(model[layer].channels, seed=layer))
            model[layer].bias.copy_(0.3 * draw(model[layer].channels, seed=10 + layer))
    for i in range(3):
        with norms.step(model), torch.no_grad():
            model(draw(8, 2, 5, 5, seed=i) + 0.5)
    return model


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def scene(model: nn.Module, count: int = 3) -> Epoch:
    def batches() -> Batches:
        for i in range(count):
            yield draw(8, 2, 5, 5, seed=20 + i) * 1.5, torch.arange(8) % 3

    return Epoch(model, Ranks(0, 1, torch.device("cpu")), batches, batches, batches, loss)


def unchanged(model: nn.Module, report: Callable[[], dict]) -> dict:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    found = report()
    assert same_bits(dict(model.state_dict()), before)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    return found


def layer_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the net's second norm and dL/dY, by an additive zero in the place of Y."""
    with norms.step(model) as s:
        s.skip()
        inputs = model[3](model[2](model[1](model[0](x))))
        shift = torch.zeros_like(inputs, requires_grad=True)
        normed = model[4](inputs)
        rest = normed + shift * model[4].weight.detach().view(-1, 1, 1)
        for part in model[5:]:
            rest = part(rest)
        (g,) = torch.autograd.grad(F.cross_entropy(rest, y), shift)
    return inputs.detach(), g


@pytest.mark.parametrize("modified", [False, True])
def test_batch_statistics_are_the_papers(modified: bool) -> None:
    model = net("bn", group=2)
    looking = BatchStatistics("4", small=2, regular=8, batches=3, modified=modified)
    found = unchanged(model, lambda: looking.report(scene(model)))
    each: dict[str, list[float]] = {}
    windows: list[tuple[list[Tensor], list[Tensor]]] = []
    for x, y in scene(model).train():
        inputs, gradient = layer_and_gradient(model, x, y)
        for name, images in (("small", 2), ("regular", 8)):
            norm = {"mu": 0.0, "var": 0.0, "g": 0.0, "psi": 0.0, "chi2": 0.0}
            for c in range(4):
                own, g = inputs[:images, c].flatten(), gradient[:images, c].flatten()
                mean = sum(own.tolist()) / len(own)
                var = sum((v - mean) ** 2 for v in own.tolist()) / len(own)
                chi2 = sum(v**2 for v in own.tolist()) / len(own)
                root = (chi2 + 1e-5) ** 0.5 if modified else (var + 1e-5) ** 0.5
                xhat = own / root if modified else (own - mean) / root
                values = {"mu": mean, "var": var, "chi2": chi2}
                values |= {"g": float(g.mean()), "psi": float((xhat * g).mean())}
                norm = {k: norm[k] + values[k] ** 2 for k in norm}
            for key in ("chi2", "psi") if modified else ("mu", "var", "g", "psi"):
                each.setdefault(f"{key}_{name}_each", []).append(norm[key] ** 0.5)
        groups = inputs.split(2)
        chi = [group.square().mean((0, 2, 3)) for group in groups]
        roots = [(c + 1e-5).sqrt().view(-1, 1, 1) for c in chi]
        both = zip(groups, roots, gradient.split(2), strict=True)
        windows.append((chi, [(x / r * g).mean((0, 2, 3)) for x, r, g in both]))
    for before, now in pairwise(windows):
        for key, old, new in zip(("chi2", "psi"), before, now, strict=True):
            if modified:
                moving = torch.stack([*old[1:], new[0]]).mean(0)
                each.setdefault(f"{key}_sma_each", []).append(float(moving.norm()))
    assert {k for k in found if k.endswith("_each")} == each.keys()
    for key, values in each.items():
        assert found[key] == pytest.approx(values, rel=1e-10), key
        assert found[key.removesuffix("_each")] == pytest.approx(sum(values) / len(values))


def test_batch_statistics_refuse_what_they_cannot_see() -> None:
    with pytest.raises(ConfigError, match="no norm layer9"):
        BatchStatistics("layer9").report(scene(net("bn")))
    with pytest.raises(ConfigError, match=r"regular=32 images, but a device has 8.*batch\.total"):
        BatchStatistics("4").report(scene(net("bn")))
    with pytest.raises(ValueError, match="must divide"):
        BatchStatistics("4", small=3)


def jacobian_ratios(model: nn.Module, x: Tensor) -> dict[str, float]:
    """The four ratios from whole Jacobians."""
    totals: dict[str, list[float]] = {}
    for place, norm in enumerate((1, 4, 7)):
        convs = [0, 3, 6][: place + 1][-3:][::-1]
        for name, power in (("mu", 1), ("nu", 2)):
            names, head = [f"{c}.weight" for c in convs], model[:norm]

            def statistic(
                *given: Tensor, names: list[str] = names, head: nn.Module = head, power: int = power
            ) -> Tensor:
                replaced = dict(zip(names, given, strict=True))
                return torch.func.functional_call(head, replaced, x).pow(power).mean((0, 2, 3))

            given = tuple(model[c].weight.detach() for c in convs)
            with norms.step(model) as s:
                s.skip()
                parts = torch.autograd.functional.jacobian(statistic, given)
            sizes = [float(part.norm()) for part in parts]
            for back, size in enumerate(sizes[1:], start=1):
                totals.setdefault(f"{name}_ratio_{back}", []).append(size / sizes[0])
    return {key: sum(values) / len(values) for key, values in totals.items()}


@pytest.mark.parametrize("norm", ["bn", "cbn"])
def test_gradient_ratios_are_those_of_whole_jacobians(norm: str) -> None:
    cbn = {"layer": {"_target_": "normrepro.norms.CBN", "_partial_": True, "burn_in": 0}}
    model = net(cbn if norm == "cbn" else norm)
    found = unchanged(model, lambda: GradientRatios(None).report(scene(model)))
    wanted = jacobian_ratios(model, next(iter(scene(model).train()))[0])
    assert found == pytest.approx(wanted, rel=1e-9)
    assert found.keys() == {f"{s}_ratio_{back}" for s in ("mu", "nu") for back in (1, 2)}
    estimated = GradientRatios(100).report(scene(model))
    assert estimated == pytest.approx(wanted, rel=0.3)
    assert estimated == GradientRatios(100).report(scene(model))


def test_densities_are_histograms_of_normalized_values() -> None:
    model = net("evalnorm", group=2)
    found = unchanged(model, lambda: Densities("1", channel=2, batches=3).report(scene(model)))
    layer, x = model[1], torch.cat([x for x, _ in scene(model).train()])
    with torch.no_grad():
        own = model[0](x)[:, 2]
    groups = own.reshape(12, -1)
    var = groups.var(1, keepdim=True, unbiased=False) + 1e-5
    values = {"bn": (groups - groups.mean(1, keepdim=True)) / var.sqrt()}
    mean, running = layer.running_mean[2], layer.running_var[2]
    values["ema"] = (own - mean) / (running + 1e-5).sqrt()
    a, b = float(layer.alpha), float(layer.beta)
    mean_i, var_i = own.mean((1, 2), keepdim=True), own.var((1, 2), keepdim=True, unbiased=False)
    mixed = b * var_i + (1 - b) * running + b * (1 - b) * (mean_i - mean) ** 2
    values["en"] = (own - a * mean_i - (1 - a) * mean) / (mixed + 1e-5).sqrt()
    for name, wanted in values.items():
        density = torch.tensor(found[f"density_{name}"])
        expected = torch.histc(wanted.flatten(), 80, -4, 4) / wanted.numel() / 0.1
        assert float((density - expected).abs().sum()) < 0.05 * 10  # rounding moves few values
        assert found[f"spread_{name}"] == pytest.approx(float(wanted.std(unbiased=False)), rel=1e-9)
    assert found["spread_bn"] == pytest.approx(1, abs=1e-3)
    with pytest.raises(ConfigError, match="no EvalNorm 4 with a channel 9"):
        Densities("4", 9).report(scene(model))


def test_coefficients_are_alpha_and_beta_of_each_layer() -> None:
    model = net("evalnorm", group=2)
    found = Coefficients().report(scene(model))
    assert found["alpha"] == [None, *(float(model[i].alpha) for i in (1, 4, 7))]
    assert found["beta"] == [None, *(float(model[i].beta) for i in (1, 4, 7))]
    assert len({*found["alpha"]}) > 2
    assert Coefficients().report(replace(scene(model), last=False)) == {}
    assert Coefficients().report(scene(net("bn")))["alpha"] == [None] * 4


LOOKS = {
    "statistics": ["task.diagnostics.statistics.regular=16"],
    "gradients": ["norm=cbn", "batch.norm=16"],
    "densities": [
        *("norm=evalnorm", "~norm.evaluations", "~norm.diagnostics"),
        "task.diagnostics.densities.layer=layer2.0.bn1",
    ],
}


@pytest.mark.parametrize("task", LOOKS)
def test_looking_leaves_the_trainings_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    records = []
    own = [o for o in LOOKS[task] if not o.startswith("task.")]
    for root, more in (("a", [f"task={task}", *LOOKS[task]]), ("b", own)):
        cfg = compose(
            [
                *SMALL,
                *more,
                "recipe.epochs=1",
                "data.source.train_images=64",
                f"run.root={tmp_path / root}",
            ]
        )
        run_dir(cfg).mkdir(parents=True)
        engine.run(cfg)
        records.append(json.loads((run_dir(cfg) / "result.json").read_text()))
    assert same_bits(weights(only_run(tmp_path / "a")), weights(only_run(tmp_path / "b")))
    assert records[0]["metrics"] == records[1]["metrics"]
    added = records[0]["history"][-1].keys() - records[1]["history"][-1].keys()
    assert len(added) >= 2
    assert all(isinstance(records[0]["history"][-1][key], float | list) for key in added)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("task", ["statistics", "densities"])
def test_what_is_recorded_does_not_depend_on_the_number_of_processes(
    start: Callable, tmp_path: Path, task: str
) -> None:
    arguments = [f"task={task}", *LOOKS[task], "precision=float64", "recipe.epochs=1"]
    for processes in (1, 2):
        done = start(*arguments, "batch.devices=2", root=f"p{processes}", processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (result(only_run(tmp_path / f"p{n}"))["history"][-1] for n in (1, 2))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-9), key

"""Statistics estimated anew: plain means over the loader's batches, and nothing else changed."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normrepro import convert, norms, recalibrate
from tests.norms.nets import stir

GROUP, REPLICAS = 2, 2


def batches(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def build(layer: Callable[..., nn.Module], **options: object) -> nn.Module:
    torch.manual_seed(0)
    norm = layer(3, group=GROUP, replicas=REPLICAS, **options)
    norm.run_length = 10
    model = nn.Sequential(norm, nn.ReLU(), nn.Dropout()).double()
    for x in batches(2):
        with norms.step(model):
            model(3 * x + 1).square().sum().backward()
    return model


def groups(x: Tensor) -> Tensor:
    """(R, G, values, C)."""
    return x.view(REPLICAS, -1, GROUP, 3, 16).transpose(2, 3).flatten(3).mT


def expected(name: str) -> dict[str, Tensor]:
    """The mean over batches and groups of each group's own statistic, (R, C)."""
    values = torch.stack([groups(x) for x in batches()])  # (batches, R, G, values, C)
    mean = values.mean(3).mean((0, 2))
    var = values.var(3, correction=int(name == "bn"))
    if name == "bn":
        return {"running_mean": mean, "running_var": var.mean((0, 2))}
    if name == "brn":
        return {"running_mean": mean, "running_std": (var + 1e-5).sqrt().mean((0, 2))}
    return {"running_var": values.square().mean(3).mean((0, 2))}


LAYERS = {
    "bn": (norms.BatchNorm, {}),
    "brn": (norms.BatchRenorm, {}),
    "mabn": (norms.MABN, {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_are_plain_means_and_nothing_else_moves(name: str) -> None:
    layer, options = LAYERS[name]
    model = build(layer, **options).eval()
    before, momentum = copy.deepcopy(model.state_dict()), model[0].momentum
    random, wanted = torch.get_rng_state(), expected(name)
    assert recalibrate(model, batches()) is model
    for key, value in model.state_dict().items():
        name = key.removeprefix("0.")
        if name in wanted:
            torch.testing.assert_close(value, wanted.pop(name), rtol=1e-12, atol=1e-14)
        else:
            assert torch.equal(value, before[key]), key
    assert not wanted
    assert model[0].momentum == momentum
    assert not any(m.training for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())


def test_official_windows_of_training_have_no_part() -> None:
    """chi^2 is the mean of moving averages that start empty."""
    model = build(norms.MABN, variant="official", memory=3)
    recalibrate(model, batches())
    values = torch.cat([groups(x).square().mean(2) for x in batches()], 1)  # (R, groups in time, C)
    averages = [values[:, max(0, i - 2) : i + 1].mean(1) for i in range(values.shape[1])]
    wanted = torch.stack(averages).mean(0)
    torch.testing.assert_close(model[0].running_var, wanted, rtol=1e-12, atol=1e-14)


class Twice(nn.Module):
    """A norm that is called twice, and one that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.aux = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to the same."""
        return self.bn(x) + self.bn(2 * x) + (self.aux(x) if self.training else 0)


@pytest.mark.parametrize("converted", [False, True])
def test_every_call_counts_and_what_does_not_run_stays(converted: bool) -> None:
    model = stir(Twice()).double()
    if converted:
        convert(model, "bn")
    aux = copy.deepcopy(model.aux.state_dict())
    recalibrate(model, [(x, None) for x in batches(9)], steps=5)
    values = torch.stack(batches()).movedim(2, 0).flatten(2)  # (C, batches, values)
    mean, var = values.mean((1, 2)), values.var(2).mean(1)
    torch.testing.assert_close(model.bn.running_mean, 1.5 * mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.bn.running_var, 2.5 * var, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.aux.state_dict(), aux, rtol=0, atol=0)
    assert model.training
    assert model.bn.momentum == 0.1


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), batches(), "keeps running statistics"),
        (nn.Sequential(norms.GroupNorm(3)), batches(), "keeps running statistics"),
        (build(norms.BatchNorm), [], "no batch"),
        (build(norms.BatchNorm), [batches(1)[0], batches(1)[0][:6]], "does not divide"),
    ],
    ids=["none", "stateless", "empty", "rest"],
)
def test_refusals_leave_everything_as_it_was(
    model: nn.Module, data: list[Tensor], message: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        recalibrate(model, data)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(m.training for m in model.modules())

"""SwitchableNorm beside a slow float64 reference; gradcheck of all compared methods."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normrepro import norms
from tests.norms import test_steps as contract
from tests.norms.cases import LAYOUTS, STEPS, Layout
from tests.norms.test_exact import TOLERANCE, batch
from tests.oracles.checks import close, draw

each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def shape(layout: Layout) -> dict[str, Any]:
    return {"group": layout.group, "replicas": layout.replicas}


def groups(layout: Layout) -> int:
    return layout.group or layout.shape[0] // layout.replicas


def change(layer: nn.Module, step: int) -> list[Tensor]:
    """New values for all parameters; returns them."""
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(draw(*p.shape, seed=10 * step + i))
    return [p.detach().clone().requires_grad_() for p in layer.parameters()]


class Switchable:
    """The released form to the letter, image by image and group by group; autograd's gradients."""

    def __init__(self, layout: Layout) -> None:
        self.group, self.replicas = groups(layout), layout.replicas
        self.mean = [torch.zeros(layout.shape[1]).double() for _ in range(layout.replicas)]
        self.var = [v.clone() for v in self.mean]

    def mixed(
        self, image: Tensor, p: list[Tensor], mean_bn: Tensor, var_bn: Tensor
    ) -> tuple[Tensor, Tensor]:
        gamma, beta, *logits = p
        mean_in, temp = self.instance(image)
        var_in = temp - mean_in**2
        mean_ln = mean_in.mean()
        var_ln = temp.mean() - mean_ln**2
        a, b = (torch.exp(w) / torch.exp(w).sum() for w in logits)
        mean = a[0] * mean_in + a[1] * mean_ln + a[2] * mean_bn
        var = b[0] * var_in + b[1] * var_ln + b[2] * var_bn
        wide = (-1,) + (1,) * (image.dim() - 1)
        y = (image - mean.view(wide)) / (var + 1e-5).sqrt().view(wide)
        return gamma.view(wide) * y + beta.view(wide)

    @staticmethod
    def instance(image: Tensor) -> tuple[Tensor, Tensor]:
        rows = image.flatten(1) if image.dim() > 1 else image[:, None]
        mean = rows.sum(1) / rows.shape[1]
        count = max(rows.shape[1] - 1, 1)
        return mean, ((rows - mean[:, None]) ** 2).sum(1) / count + mean**2

    def train(self, x: Tensor, p: list[Tensor]) -> Tensor:
        out, seen = [], []
        for part in x.split(self.group):
            pairs = [self.instance(image) for image in part]
            mean = sum(m for m, _ in pairs) / len(part)
            var = sum(t for _, t in pairs) / len(part) - mean**2
            out += [self.mixed(image, p, mean, var) for image in part]
            seen.append((mean.detach(), var.detach()))
        per = len(seen) // self.replicas
        for r in range(self.replicas):
            mine = seen[r * per : (r + 1) * per]
            self.mean[r] = 0.9 * self.mean[r] + 0.1 * sum(m for m, _ in mine) / per
            self.var[r] = 0.9 * self.var[r] + 0.1 * sum(v for _, v in mine) / per
        return torch.stack(out)

    def evaluate(self, x: Tensor, p: list[Tensor]) -> Tensor:
        return torch.stack([self.mixed(image, p, self.mean[0], self.var[0]) for image in x])


@each_layout
def test_switchable_norm_is_its_reference_over_many_steps(layout: Layout) -> None:
    layer = norms.SwitchableNorm(layout.shape[1], **shape(layout)).double()
    oracle = Switchable(layout)
    for step in range(STEPS):
        parameters = change(layer, step)
        for training in (True, False):
            layer.train(training)
            x, gz = batch(layout, step)
            one, two = (x.clone().requires_grad_() for _ in range(2))
            with norms.step(layer):
                y = layer(one)
            wanted = oracle.train(two, parameters) if training else oracle.evaluate(two, parameters)
            close(y.detach(), wanted.detach(), TOLERANCE)
            got = torch.autograd.grad(y, (one, *layer.parameters()), gz)
            for g, w in zip(got, torch.autograd.grad(wanted, (two, *parameters), gz), strict=True):
                close(g, w, TOLERANCE)
        for name, state in (("running_mean", oracle.mean), ("running_var", oracle.var)):
            close(layer.state(name), torch.stack(state), TOLERANCE)
    again = norms.SwitchableNorm(layout.shape[1], **shape(layout)).double().eval()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


def test_switchable_norm_starts_even_and_takes_single_values() -> None:
    layer = norms.SwitchableNorm(3)
    assert layer.running_var.tolist() == [0, 0, 0]
    assert {n for n, _ in layer.named_parameters()} == {
        "weight",
        "bias",
        "mean_weight",
        "var_weight",
    }
    x = draw(4, 3, 1, 1).float().requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert layer.eval()(x[:0]).shape == (0, 3, 1, 1)


def test_gradcheck() -> None:
    x = draw(4, 4, 3).requires_grad_()
    for layer in (norms.SwitchableNorm(4, 2), norms.GroupWhitening(4, groups=2), norms.IBN(4, 2)):
        layer.double()
        parameters = change(layer, 1)
        names = [n for n, _ in layer.named_parameters()]

        def call(x: Tensor, *values: Tensor) -> Tensor:
            named = dict(zip(names, values, strict=True))  # noqa: B023
            return torch.func.functional_call(layer, named, (x,))  # noqa: B023

        for training in (True, False):
            layer.train(training)
            assert torch.autograd.gradcheck(call, (x, *parameters))


CONTRACT = {
    "evalnorm": lambda c, **k: norms.EvalNorm(c, lr=0.5, **k),
    "evalnorm-early": lambda c, **k: norms.EvalNorm(c, lr=0.5, keep_inputs=False, **k),
    "sn": norms.SwitchableNorm,
    "disturbed": norms.DisturbedBatchNorm,
}


@pytest.mark.parametrize("name", CONTRACT)
def test_state_advances_once_per_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract of `norms.step`, for the layers of this file's neighbours too."""
    monkeypatch.setitem(contract.LAYERS, name, CONTRACT[name])
    for reentrant in (True, False):
        contract.test_activation_checkpointing_changes_nothing(name, reentrant)
    contract.test_recomputed_calls_of_one_shape_find_their_own_windows(name)
    contract.test_several_calls_move_the_state_once_by_their_mean(name)
    contract.test_a_skipped_or_failed_step_leaves_no_trace(name)
    contract.test_outside_a_step_every_training_forward_moves_the_state(name)
    contract.test_copies_and_pickles_go_on_alike(name)

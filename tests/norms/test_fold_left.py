"""Folding: who is left alone, unchanged, and why."""

import copy

import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn

from normrepro import fold, norms
from tests.norms.nets import outputs, stir


class Reuse(nn.Module):
    """A convolution whose output goes to two takers."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), second

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 4, H, W)."""
        y = self.conv(x)
        return self.bn(y) + self.second(y)


class Returned(Reuse):
    """A convolution whose output is a result, too."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map (N, 3, H, W) to two maps."""
        y = self.conv(x)
        return {"norm": self.bn(y), "conv": y}


class Own(nn.Conv2d):
    """A convolution whose weight takes part through its signs only."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W)."""
        return self._conv_forward(x, self.weight.sign(), self.bias)


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))


def hooked() -> nn.Module:
    conv = nn.Conv2d(3, 4, 1)
    conv.register_forward_hook(lambda module, inputs, output: output.relu())
    return conv


def two(first: nn.Module, second: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(first, second or nn.BatchNorm2d(4))


OWN = "fed by a convolution that does not compute with its weight as it is"
SHARED = "fed by a convolution that feeds others too"
LEFT = {
    "sum": (lambda: Reuse(nn.Identity()), {"bn": SHARED}),
    "two-norms": (lambda: Reuse(nn.BatchNorm2d(4)), {"bn": SHARED, "second": SHARED}),
    "result": (lambda: Returned(nn.Identity()), {"bn": SHARED}),
    "relu-before": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        {"2": "not fed by convolutions alone"},
    ),
    "own-forward": (lambda: two(Own(3, 4, 1)), {"1": OWN}),
    "standardized": (lambda: two(ScaledStdConv2d(3, 4, 1)), {"1": OWN}),
    "weight-norm": (lambda: two(parametrized()), {"1": OWN}),
    "hook": (lambda: two(hooked()), {"1": OWN}),
    "group-norm": (
        lambda: two(nn.Conv2d(3, 4, 1), norms.GroupNorm(4, groups=2)),
        {"1": "not affine at inference"},
    ),
    "no-statistics": (
        lambda: two(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        {"1": "not affine at inference"},
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_who_is_left_alone_and_why(case: str) -> None:
    build, left = LEFT[case]
    model, x = stir(build()).eval(), torch.randn(2, 3, 5, 5)
    before, state = outputs(model, x), copy.deepcopy(model.state_dict())
    fold(model, x)
    assert model.folding.left == left
    assert not model.folding.folded
    assert torch.equal(outputs(model, x), before)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)

"""Conversion: every architecture of the papers, what is kept, what is found, what is refused."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from normrepro import convert
from normrepro.norms.centre import is_centred
from normrepro.norms.pairing import find_sources
from tests.norms.nets import NET_CASES, Net, inputs_and_outputs, outputs, stir


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("net", NET_CASES)
def test_architectures_keep_what_they_compute_and_show_their_convolutions(net: Net) -> None:
    # In float64: a detector selects boxes, which enlarges rounding.
    model, example = net.build().double(), net.example(torch.float64)
    parameters, before = dict(model.named_parameters()), outputs(model, example)
    convert(model, "bn", group=1)
    report = model.conversion
    assert len(report.replaced) == len(report.kept_statistics) == net.norms
    assert len(report.kept) == net.kept
    assert not report.paired
    assert set(map(id, model.parameters())) == set(map(id, parameters.values()))
    assert relative(outputs(model, example), before) < 1e-9
    convert(model, "mabn", group=1, example=example)
    report = model.conversion
    found = (len(report.paired), len(report.sliced), len(report.unpaired))
    assert found == (net.paired, net.sliced, net.unpaired)
    centred = {n for n, m in model.named_modules() if is_centred(m)}
    told = {s.conv for sources in report.sliced.values() for s in sources} - {None}
    assert centred == told | set(report.paired.values())


@pytest.mark.parametrize(
    "name", ["densenet121", pytest.param("nasnetalarge", marks=pytest.mark.slow)]
)
def test_slices_are_the_outputs_of_their_convolutions(name: str) -> None:
    """The report, held against the tensors themselves."""
    model = stir(timm.create_model(name, num_classes=10)).eval()
    example = torch.rand(1, 3, 96, 96)
    reference = copy.deepcopy(model)
    convert(model, "mabn", example=example)
    with torch.no_grad(), inputs_and_outputs(reference) as (taken, made):
        reference(example)
    stretches = 0
    for norm, sources in model.conversion.sliced.items():
        x, start = taken[norm], 0
        assert sum(source.channels for source in sources) == x.shape[1]
        for conv, channels, pooled in sources:
            part = x[:, start : start + channels]
            if conv is not None:
                whole = made[conv]
                size = whole.shape[-1] // part.shape[-1]
                assert pooled == (size > 1)
                torch.testing.assert_close(part, F.avg_pool2d(whole, size) if pooled else whole)
                stretches += 1
            start += channels
    assert stretches > 4


def test_stretches_of_a_densenet() -> None:
    """Transitions' poolings, concatenations, and the channels that come from no convolution."""
    model = torchvision.models.densenet121(weights=None)
    convert(model, "mabn", example=torch.rand(1, 3, 64, 64))
    sliced, block = model.conversion.sliced, "features.denseblock"
    assert sliced[f"{block}2.denselayer1.norm1"] == (("features.transition1.conv", 128, True),)
    assert sliced[f"{block}2.denselayer2.norm1"] == (
        ("features.transition1.conv", 128, True),
        (f"{block}2.denselayer1.conv2", 32, False),
    )
    assert sliced[f"{block}1.denselayer2.norm1"][0] == (None, 64, False)
    assert len(sliced["features.norm5"]) == 17
    assert model.conversion.unpaired == [f"{block}1.denselayer1.norm1"]


class Tied(nn.Module):
    """One norm object in two places, and a convolution that feeds a norm and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Sequential(self.two, nn.BatchNorm2d(4))
        self.again = nn.Sequential(nn.Conv2d(4, 4, 1), self.bn)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 4, H, W)."""
        y = self.one(x)
        return self.again(self.head(self.bn(y)) + y)


def test_a_module_in_several_places_is_replaced_in_all() -> None:
    model = Tied()
    convert(model, "mabn", example=torch.rand(2, 3, 5, 5))
    assert model.bn is model.again[1]
    assert [type(m).__name__ for m in model.modules()].count("MABN") == 2
    assert model.conversion.paired == {"head.1": "two"}
    assert model.conversion.unpaired == ["bn"]  # now this, now that convolution


def test_convolution_whose_output_goes_elsewhere_is_noted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y) + y

    model = convert(Net(), "mabn", example=torch.rand(2, 3, 5, 5))
    assert model.conversion.paired == {"bn": "conv"}
    assert model.conversion.shared == ["conv"]
    assert "1 convolutions goes elsewhere" in str(model.conversion)


def changed_in_place(x: Tensor) -> Tensor:
    return x.add_(1.0)


@pytest.mark.parametrize(
    ("between", "found"),
    [
        (nn.Identity(), True),
        (nn.Dropout().eval(), True),
        (nn.AvgPool2d(2), True),
        (nn.AdaptiveAvgPool2d(1), True),
        (nn.AvgPool2d(3, 1), False),
        (nn.AvgPool2d(2, padding=1), False),
        (nn.ReLU(), False),
        (nn.MaxPool2d(2), False),
        (changed_in_place, False),
        (lambda x: x.flip(1), False),
        (lambda x: x.transpose(1, 2).transpose(1, 2), True),
        (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), True),
        (lambda x: x.transpose(1, 2), False),
        (lambda x: x.flatten(2).unflatten(2, (4, 4)).contiguous(), True),
        (lambda x: x.view(2, 2, 2, 4, 4).transpose(1, 2).reshape(2, 4, 4, 4), False),
    ],
)
def test_what_may_lie_between(between: Callable[[Tensor], Tensor], found: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(between(self.conv(x)))

    flow = find_sources(Net(), ["bn"], torch.rand(2, 3, 4, 4))
    assert bool(flow.sources["bn"]) == found

"""Conversion at its edges: guessed examples, what is refused, rules, what it leaves behind."""

import copy
import logging
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from normrepro import convert, norms
from normrepro.norms.centre import is_centred
from normrepro.norms.pairing import find_sources

Wrapped = nn.parallel.DistributedDataParallel


@pytest.mark.parametrize(
    ("build", "pairs"),
    [
        (lambda: torchvision.models.resnet18(weights=None), 20),
        (lambda: timm.create_model("resnet10t", in_chans=1), 14),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double(), 1),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)), 1),
        (lambda: nn.Sequential(nn.Conv3d(1, 2, 5, stride=5), nn.BatchNorm3d(2)), 1),
        pytest.param(
            lambda: torchvision.models.inception_v3(weights=None, init_weights=False),
            96,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(
                weights=None, weights_backbone=None, min_size=128
            ),
            65,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["torchvision", "timm", "linear", "1d", "3d", "inception", "detection"],
)
def test_example_is_guessed(build: Callable[[], nn.Module], pairs: int) -> None:
    model = build()
    convert(model, "mabn")
    assert len(model.conversion.paired) == pairs


def test_tracing_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4))
    model[1].eval()
    model[1].unused = nn.BatchNorm2d(4)  # looked for in training mode too
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x, random = torch.rand(2, 3, 5, 5), torch.get_rng_state()
    find_sources(model, ["1", "3", "1.unused"], x)
    torch.testing.assert_close(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), ValueError, "no batch norm to replace"),
        (
            lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)),
            ValueError,
            "pass example=",
        ),
        (
            lambda: nn.parallel.DistributedDataParallel.__new__(
                nn.parallel.DistributedDataParallel
            ),
            TypeError,
            "convert the model first",
        ),
    ],
    ids=["none", "no-guess", "ddp"],
)
def test_refusals(build: Callable[[], nn.Module], error: type, message: str) -> None:
    model = build()
    with pytest.raises(error, match=message):
        convert(model, "mabn")


def test_a_refused_conversion_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match="does not divide"):
        convert(model, lambda c, **options: norms.GroupNorm(c, groups=4, **options))
    with pytest.raises(Exception, match="channels"):
        convert(model, "mabn", example=torch.rand(2, 5, 4, 4))
    assert type(model[1]) is nn.BatchNorm2d
    assert not is_centred(model[0])
    with pytest.raises(ValueError, match="did you mean mabn"):
        convert(model, "mabm")


def test_rules_choose_by_name() -> None:
    """The first rule that matches wins, and `every` counts the matches."""
    bn, gn = (
        {"_target_": f"normrepro.norms.{name}", "_partial_": True}
        for name in ("BatchNorm", "GroupNorm")
    )
    rules = [
        {"match": r"bn1$", "every": 2, "layer": gn | {"groups": 2}},
        {"match": r"layer4", "layer": gn | {"groups": 4}},
    ]
    model = torchvision.models.resnet18(weights=None)
    convert(model, {"layer": bn, "rules": rules})
    groups = {n: m.groups for n, m in model.named_modules() if isinstance(m, norms.GroupNorm)}
    firsts = [n for n in model.conversion.replaced if n.endswith("bn1")]
    fourth = {n for n in model.conversion.replaced if "layer4" in n}
    assert {n for n, g in groups.items() if g == 2} == set(firsts[1::2])
    assert {n for n, g in groups.items() if g == 4} == fourth - set(firsts[1::2])
    with pytest.raises(ValueError, match="matches none of the model's norms"):
        convert(model, {"layer": bn, "rules": [{"match": "nowhere", "layer": gn}]})


def test_the_log_tells(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="normrepro"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "mabn")
    assert "replaced 1 batch norms by 1 MABN; 1 know their convolution" in caplog.text

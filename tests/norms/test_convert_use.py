"""Conversion in use: fused layers, every kind of batch norm, layer after layer."""

import pytest
import torch
import torchvision
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_splitbn_model
from torch import nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d

from normrepro import convert, norms
from normrepro.norms.centre import is_centred
from normrepro.norms.conversion import NormAct
from tests.norms.nets import outputs, stir


@pytest.mark.parametrize(
    ("fused", "drop"), [(BatchNormAct2d, nn.Dropout), (SyncBatchNormAct, None)]
)
def test_fused_layers_keep_dropout_and_activation(fused: type, drop: type | None) -> None:
    layer = fused(4)
    if drop is not None:
        layer.drop = drop(0.5)
    else:
        layer.act = nn.ReLU()
    model = stir(nn.Sequential(nn.Conv2d(3, 4, 1), layer)).eval()
    x = torch.randn(2, 3, 5, 5)
    before = outputs(model, x)
    convert(model, "bn")
    assert isinstance(model[1], NormAct)
    assert model[1].act is layer.act
    torch.testing.assert_close(outputs(model, x), before)
    for name in ("mabn", "bn"):  # of the conversion itself: a rule sees the names that it saw first
        convert(model, name, example=x)
        assert list(model.conversion.replaced) == ["1"]
    assert (before == 0).any()
    assert (outputs(model, x) >= 0).all()


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (2, 3)),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 9)),
        (nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4)), (2, 3, 2, 3, 4)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4)), (2, 3, 5, 5)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), (2, 3, 5, 5)),
    ],
    ids=["linear", "1d", "3d", "sync", "plain"],
)
def test_every_kind_of_batch_norm(model: nn.Module, example: tuple[int, ...]) -> None:
    model = stir(model).eval()
    x = torch.rand(*example)
    before = outputs(model, x)
    torch.testing.assert_close(outputs(convert(model, "bn"), x), before)
    convert(model, "mabn", example=x)
    assert model.conversion.paired == {"1": "0"}


def test_conversions_follow_each_other() -> None:
    """Statistics go from layer to layer, hooks go, and centred weights become plain ones."""
    torch.manual_seed(0)
    model = stir(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    x, weight = torch.rand(2, 3, 6, 6), model[0].weight
    before = outputs(model, x)
    convert(model, "brn")
    torch.testing.assert_close(outputs(model, x), before)
    convert(model, "mabn", example=x)
    assert model.conversion.reset_statistics == ["1"]  # its input is another one, centred
    stir(model, seed=1)
    before = outputs(model, x)
    for name in ("mabn_official", "brn", "bn", "mabn"):
        convert(model, name, example=x)
        assert model.conversion.kept_statistics == ["1"]
        assert is_centred(model[0]) == name.startswith("mabn")
        torch.testing.assert_close(outputs(model, x), before)
    assert model[0].weight is weight


def test_transposed_convolutions_are_not_paired() -> None:
    for name in ("mabn", "cbn"):
        model = nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.BatchNorm2d(4))
        convert(model, name, example=torch.rand(2, 4, 5, 5))
        assert model.conversion.unpaired == ["1"]


def test_cbn_watches_slices_of_a_densenet() -> None:
    """Also where channels come from no convolution, or through a transition's pooling."""
    model = torchvision.models.DenseNet(8, (2, 3, 2), 16, num_classes=10)
    images = torch.rand(2, 3, 64, 64)
    convert(model, norms.CBN, group=1, example=images)
    for _ in range(2):
        with norms.step(model):
            model(images).square().mean().backward()
    for name, layer in model.named_modules():
        if isinstance(layer, norms.CBN):
            sources = model.conversion.sliced.get(name, [])
            found = len([s for s in sources if s.conv]) or int(name in model.conversion.paired)
            assert len(layer.sources) == found, name
            assert layer.pushed.tolist() == ([4] if found else []), name
    convert(model, "bn")
    assert not any(m._forward_hooks for m in model.modules())


def test_half_precision_models_keep_float32_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).bfloat16()
    convert(model, "mabn", example=torch.rand(2, 3, 5, 5))
    assert model[1].running_var.dtype == torch.float32
    assert model[1].weight.dtype == torch.bfloat16
    assert model(torch.rand(2, 3, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_statistics_count_as_trained_by_their_values() -> None:
    """Checkpoints from before torch counted batches leave the counter at zero."""
    model = stir(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert model[1].num_batches_tracked == 0
    assert convert(model, "bn").conversion.kept_statistics == ["1"]
    fresh = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert not convert(fresh, "bn").conversion.kept_statistics


def test_other_norms_are_left_and_listed() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)
    )
    kept = list(model)[:3]
    convert(model, "bn")
    assert list(model)[:3] == kept
    assert model.conversion.kept == {"1": "FrozenBatchNorm2d", "2": "GroupNorm"}
    assert "left as they are: 1 FrozenBatchNorm2d, 1 GroupNorm" in str(model.conversion)
    with pytest.raises(ValueError, match="no batch norm to replace: there are FrozenBatchNorm2d"):
        convert(nn.Sequential(*kept[:2]), "bn")
    split = convert_splitbn_model(nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    with pytest.raises(ValueError, match="there are SplitBatchNorm2d"):
        convert(split, "bn")


def test_shared_head_of_a_detector() -> None:
    """A tower's convolutions and norms see every level of the pyramid: one pair each."""
    head = RetinaNetHead(8, num_anchors=1, num_classes=3, norm_layer=nn.BatchNorm2d)
    levels = [torch.rand(1, 8, s, s) for s in (8, 4, 2)]
    convert(head, "mabn", group=1, example=(levels,))
    assert len(head.conversion.paired) == len(head.conversion.replaced) == 8
    assert not head.conversion.shared

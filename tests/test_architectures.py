"""Every choice of model: its size and what it costs."""

from typing import NamedTuple

import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torchvision.models import get_model_weights

from normrepro import config
from normrepro.hints import groups
from normrepro.launch import cost


class Size(NamedTuple):
    """What a net must have on its data set: parameters, norms, convolutions, linear layers."""

    data: str
    parameters: int
    norms: int
    convolutions: int
    linear: int


# Parameters of the papers' nets at 1,000 classes: torchvision's and timm's published counts.
SIZES = {
    "resnet18": Size("imagenet", 11_689_512, 20, 20, 1),
    "resnet50": Size("imagenet", 25_557_032, 53, 53, 1),
    "resnet101": Size("imagenet", 44_549_160, 104, 104, 1),
    "resnext50": Size("imagenet", 25_028_904, 53, 53, 1),
    "resnext101": Size("imagenet", 88_791_336, 104, 104, 1),
    "resnetv2_50": Size("imagenet", 25_549_352, 49, 54, 0),  # the classifier is a convolution
    "vgg16": Size("imagenet", 138_365_992, 13, 13, 3),
    "inception_v3": Size("imagenet", 23_834_568, 94, 94, 1),
    "densenet121": Size("imagenet", 7_978_856, 121, 120, 1),
    "mobilenet_v2": Size("imagenet", 3_504_872, 52, 52, 1),
    "timm": Size("imagenet", 25_557_032, 53, 53, 1),
    "resnetv2_cifar": Size("cifar10", 272_282, 19, 21, 1),
    "mlp": Size("mnist", 420_618, 20, 0, 21),
    "resnet_digits": Size("digits", 67_906, 19, 19, 1),
    "bottleneck_digits": Size("digits", 80_130, 31, 31, 1),
    "resnetv2_digits": Size("digits", 68_546, 19, 21, 1),
    "vgg_digits": Size("digits", 34_498, 7, 7, 3),
    "inception_digits": Size("digits", 15_546, 29, 29, 1),
    "densenet_digits": Size("digits", 21_106, 15, 14, 1),
    "mobilenet_digits": Size("digits", 33_546, 16, 16, 1),
    "mlp_digits": Size("digits", 86_410, 20, 0, 21),
}
PROXIES = [name for name, size in SIZES.items() if size.data == "digits"]
# torchvision's name, and the pixels a side at which it counted 1e9 multiply-adds
COUNTED = {
    "resnet18": ("resnet18", 224),
    "resnet101": ("resnet101", 224),
    "resnext50": ("resnext50_32x4d", 224),
    "resnext101": ("resnext101_32x8d", 224),
    "vgg16": ("vgg16_bn", 224),
    "inception_v3": ("inception_v3", 299),
    "densenet121": ("densenet121", 224),
    "mobilenet_v2": ("mobilenet_v2", 224),
}


def test_every_choice_of_model_is_held_to_its_size():
    assert set(SIZES) == set(groups()["model"])


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    size = SIZES[name]
    cfg = config.compose([f"data={size.data}", f"model={name}"])
    with torch.device("meta"):
        net = instantiate(cfg.model.build, num_classes=cfg.data.expect.classes)
    kinds = nn.modules.batchnorm._BatchNorm, nn.Conv2d, nn.Linear
    counts = [sum(isinstance(m, kind) for m in net.modules()) for kind in kinds]
    parameters = sum(p.numel() for p in net.parameters())
    assert (size.data, parameters, *counts) == size


@pytest.mark.parametrize("name", COUNTED)
def test_the_plan_counts_what_torchvision_counts(name: str) -> None:
    original, pixels = COUNTED[name]
    cfg = config.compose(["data=imagenet", f"model={name}", f"data.size={pixels}"])
    reference = get_model_weights(original).IMAGENET1K_V1.meta["_ops"]
    assert cost.flops_per_image(cfg) / 2e9 == pytest.approx(reference, rel=0.01)


@pytest.mark.parametrize("name", [n for n in SIZES if n not in (*COUNTED, "timm", "resnet50")])
def test_the_plan_counts_the_others_too(name: str) -> None:
    cfg = config.compose([f"data={SIZES[name].data}", f"model={name}"])
    millions = cost.flops_per_image(cfg) / 2e6
    assert millions == pytest.approx(
        {"resnetv2_50": 4089, "resnetv2_cifar": 40.8, "mlp": 0.413}.get(name, 0.5), rel=0.9
    )

"""Models that timm and torchvision lack, and the initializations that recipes name."""

from normrepro.models.initialize import initialize
from normrepro.models.mlp import mlp
from normrepro.models.preact_resnet import PreactResNet, preact_resnet
from normrepro.models.small_inception import small_inception
from normrepro.models.small_resnet import SmallResNet, small_resnet
from normrepro.models.small_torchvision import small_densenet, small_mobilenet
from normrepro.models.small_vgg import SmallVGG, small_vgg

__all__ = [
    "PreactResNet",
    "SmallResNet",
    "SmallVGG",
    "initialize",
    "mlp",
    "preact_resnet",
    "small_densenet",
    "small_inception",
    "small_mobilenet",
    "small_resnet",
    "small_vgg",
]

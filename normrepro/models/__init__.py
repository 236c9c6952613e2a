"""Models that timm and torchvision lack, and the initializations that recipes name."""

from normrepro.models.initialize import initialize
from normrepro.models.small_resnet import SmallResNet, small_resnet

__all__ = ["SmallResNet", "initialize", "small_resnet"]

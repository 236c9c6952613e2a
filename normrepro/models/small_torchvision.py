"""torchvision's DenseNet and MobileNet-v2, narrow, with a stem that fits images of 8x8 pixels.

Theirs halves the map twice (DenseNet) or once before the first block; here the first convolution
is 3x3 with stride 1 and nothing pools after it.
"""

from collections.abc import Sequence

from torch import nn

from normrepro.config import ConfigError


def stem(inputs: int, outputs: int) -> nn.Conv2d:
    """Return the first convolution of both nets."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def small_densenet(
    growth: int = 8,
    blocks: Sequence[int] = (3, 3),
    num_classes: int = 10,
    in_channels: int = 1,
) -> nn.Module:
    """Build a narrow DenseNet (Huang et al. 2017) of bottleneck layers.

    Args:
        growth: Channels that each layer adds; the stem has twice as many.
        blocks: Layers of each dense block; a transition between two halves channels and map.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """
    from torchvision.models import DenseNet  # here: torchvision takes a second to import

    if growth < 1 or not blocks or min(blocks) < 1:
        raise ConfigError("model.build.growth and each of model.build.blocks must be 1 or more")
    net = DenseNet(growth, tuple(blocks), 2 * growth, num_classes=num_classes)
    net.features.conv0, net.features.pool0 = stem(in_channels, 2 * growth), nn.Identity()
    return net


def small_mobilenet(
    stages: Sequence[Sequence[int]] = ((1, 8, 1, 1), (6, 16, 2, 2), (6, 32, 2, 2)),
    last: int = 128,
    dropout: float = 0.2,
    num_classes: int = 10,
    in_channels: int = 1,
) -> nn.Module:
    """Build a narrow MobileNet-v2 (Sandler et al. 2018).

    Args:
        stages: Per stage the expansion, channels (a multiple of 8), blocks, and first stride.
        last: Channels of the convolution before the classifier.
        dropout: Probability before the classifier.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """
    from torchvision.models import MobileNetV2  # here: torchvision takes a second to import

    if not stages or any(len(stage) != 4 or stage[1] % 8 for stage in stages):
        raise ConfigError(
            "model.build.stages must be lists of expansion, channels, blocks and stride, "
            "the channels a multiple of 8"
        )
    setting = [list(stage) for stage in stages]
    net = MobileNetV2(num_classes, inverted_residual_setting=setting, dropout=dropout)
    wide = net.features[0][0].out_channels  # torchvision's 32
    net.features[0][0] = stem(in_channels, wide)
    net.features[-1][0] = nn.Conv2d(setting[-1][1], last, 1, bias=False)
    net.features[-1][1] = nn.BatchNorm2d(last)
    net.classifier[1] = nn.Linear(last, num_classes)
    return net

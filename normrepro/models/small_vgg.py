"""A narrow VGG with batch norm (Simonyan and Zisserman 2015) for images of 8x8 pixels and up."""

from collections.abc import Sequence

from torch import Tensor, nn

from normrepro.config import ConfigError


class SmallVGG(nn.Module):
    """Stages of 3x3 convolutions with norms, each ended by pooling; two hidden linear layers.

    As in torchvision's vgg16_bn, the convolutions before norms have biases, and the hidden layers
    have dropout and no norm.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        hidden: int,
        dropout: float,
        classes: int,
        inputs: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in stages:
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        head: list[nn.Module] = [nn.Flatten()]
        for _ in range(2):
            head += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            inputs = hidden
        self.classifier = nn.Sequential(*head, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.classifier(self.avgpool(self.features(x)))


def small_vgg(
    stages: Sequence[Sequence[int]] = ((8, 8), (16, 16), (32, 32, 32)),
    hidden: int = 64,
    dropout: float = 0.5,
    num_classes: int = 10,
    in_channels: int = 1,
) -> SmallVGG:
    """Build a narrow VGG.

    Args:
        stages: Channels of the convolutions, stage by stage; each stage halves the map.
        hidden: Neurons of the two layers before the classifier.
        dropout: Probability, after each of these.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """
    if not stages or not all(stages) or min(min(stage) for stage in stages) < 1 or hidden < 1:
        raise ConfigError("model.build.stages must be lists of channels, hidden 1 or more")
    return SmallVGG([list(stage) for stage in stages], hidden, dropout, num_classes, in_channels)

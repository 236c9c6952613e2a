"""A narrow net of Inception-v3's first kind of block for images of 8x8 pixels and up.

A block (Szegedy et al. 2016, Figure 5) joins four branches: 1x1; 1x1 and 5x5; 1x1 and two 3x3; mean
over 3x3 and 1x1. Each convolution has a norm (eps 0.001, as in torchvision's) and ReLU. Between the
two halves of the blocks a maximum over 2x2 pixels halves the map.
"""

import torch
from torch import Tensor, nn

from normrepro.config import ConfigError

EPS = 1e-3  # of Inception's norms


def unit(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return convolution, norm and ReLU that keep the map's size."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=EPS), nn.ReLU(inplace=True))


class InceptionBlock(nn.Module):
    """Four branches over the same map, side by side: (N, inputs, H, W) to (N, 4 width, H, W)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1 = unit(inputs, width, 1)
        self.branch5 = nn.Sequential(unit(inputs, width, 1), unit(width, width, 5))
        double = (unit(inputs, width, 1), unit(width, width, 3), unit(width, width, 3))
        self.branch3 = nn.Sequential(*double)
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, padding=1), unit(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches along the channels."""
        return torch.cat([self.branch1(x), self.branch5(x), self.branch3(x), self.pool(x)], dim=1)


def small_inception(
    blocks: int = 4,
    width: int = 8,
    dropout: float = 0.5,
    num_classes: int = 10,
    in_channels: int = 1,
) -> nn.Sequential:
    """Build a narrow Inception net.

    Args:
        blocks: Inception blocks; the map is halved in their middle.
        width: Channels of each of a block's branches.
        dropout: Probability before the classifier.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """
    if blocks < 1 or width < 1:
        raise ConfigError("model.build.blocks and model.build.width must be 1 or more")
    body: list[nn.Module] = [unit(in_channels, 2 * width, 3)]
    for number in range(blocks):
        if number == blocks // 2:
            body.append(nn.MaxPool2d(2))
        body.append(InceptionBlock(4 * width if number else 2 * width, width))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*body, *head, nn.Linear(4 * width, num_classes))

"""The pre-activation residual net of He et al. (2016b) for CIFAR, of basic blocks (EvalNorm 4.1).

6n + 2 layers: a 3x3 stem without norm, three stages of n blocks (norm, ReLU, 3x3 convolution, norm,
ReLU, 3x3 convolution), then a norm, ReLU, the mean over the map and a linear layer. The paper's own
CIFAR nets of this kind have bottlenecks; EvalNorm's 20 layers on widths 16, 32, 64 are basic
blocks. Where the shape changes, and in the very first block, norm and ReLU come before the branches
split; a shape changes by a 1x1 convolution of stride 2, both as in He et al.'s released code.
EvalNorm says neither.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from normrepro.config import ConfigError
from normrepro.models.initialize import initialize
from normrepro.models.small_resnet import convolution, depth_to_blocks


class PreactBlock(nn.Module):
    """Norm, ReLU, convolution, twice; `first` normalizes the shortcut's input as well."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), convolution(outputs, outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None
        self.common = first or changes

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(x))
        past = y if self.common else x
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return y + (past if self.shortcut is None else self.shortcut(past))


class PreactResNet(nn.Module):
    """See the module's docstring; build it with `preact_resnet`."""

    def __init__(
        self,
        blocks: int,
        widths: Sequence[int],
        strides: Sequence[int],
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1, inputs = convolution(channels, widths[0]), widths[0]
        for number, (outputs, stride) in enumerate(zip(widths, strides, strict=True), start=1):
            stage = [PreactBlock(inputs, outputs, stride, first=number == 1)]
            stage += [PreactBlock(outputs, outputs, 1, first=False) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            inputs = outputs
        self.stages = len(widths)
        self.bn, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        x = self.conv1(x)
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))


def preact_resnet(
    depth: int = 20,
    width: int = 1,
    num_classes: int = 10,
    in_channels: int = 3,
    channels: int = 16,
    strides: Sequence[int] = (1, 2, 2),
) -> PreactResNet:
    """Build the pre-activation net.

    Args:
        depth: Layers with weights on the main path, 2 * len(strides) * n + 2.
        width: Factor on the channels of every stage.
        num_classes: Outputs.
        in_channels: Channels of the images.
        channels: Of the first stage at width 1; each further stage has twice as many.
        strides: Stride of each stage's first block, one per stage.
    """
    blocks = depth_to_blocks(depth, strides, per_block=2)
    if width < 1 or channels < 1:
        raise ConfigError("model.build.width and model.build.channels must be 1 or more")
    widths = [channels * width * 2**stage for stage in range(len(strides))]
    net = PreactResNet(blocks, widths, list(strides), num_classes, in_channels)
    initialize(net, "kaiming_fan_out")
    return net

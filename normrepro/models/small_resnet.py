"""The residual net of He et al. (2016), section 4.2, for images of 8x8 to 32x32 pixels.

6n + 2 layers: a 3x3 stem, three stages of n two-convolution blocks of widths w, 2w, 4w, the mean
over the map and a linear layer; norm after every convolution, ReLU after the addition, shortcuts
without parameters (option A). `residual=False` gives the plain net of the same paper, which leans
on its norms far more: nothing carries a signal past a badly normalized layer. Small maps make batch
statistics scarce as well: with strides (2, 2, 2) an 8x8 image ends as one pixel, so a normalization
batch of 2 has two values a channel.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from normrepro.config import ConfigError
from normrepro.models.initialize import initialize


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """Two convolutions with their norms, and the shortcut around them where `residual` is on."""

    def __init__(self, inputs: int, outputs: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = convolution(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.residual, self.extra = stride, residual, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x) if self.residual else y)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: every stride-th pixel, the new channels zero."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, 0, self.extra])


class SmallResNet(nn.Module):
    """See the module's docstring; build it with `small_resnet`."""

    def __init__(
        self,
        blocks: int,
        widths: Sequence[int],
        strides: Sequence[int],
        residual: bool,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(channels, widths[0]), nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for number, (outputs, stride) in enumerate(zip(widths, strides, strict=True), start=1):
            stage = [Block(inputs, outputs, stride, residual)]
            stage += [Block(outputs, outputs, 1, residual) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            inputs = outputs
        self.stages = len(widths)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def small_resnet(
    depth: int = 20,
    width: int = 16,
    residual: bool = True,
    num_classes: int = 10,
    in_channels: int = 1,
    strides: Sequence[int] = (1, 2, 2),
    growth: int = 2,
) -> SmallResNet:
    """Build the CIFAR-style residual net, or the plain one.

    Args:
        depth: Layers with weights on the main path, 2 * len(strides) * n + 2.
        width: Channels of the first stage.
        residual: False leaves the shortcuts out.
        num_classes: Outputs.
        in_channels: Channels of the images.
        strides: Stride of each stage's first block, one per stage.
        growth: Factor from one stage's width to the next.
    """
    per_stage = 2 * len(strides)
    if not strides or depth < per_stage + 2 or (depth - 2) % per_stage:
        raise ConfigError(
            f"model.build.depth={depth} must be {per_stage}n + 2 for {len(strides)} stages: "
            f"{', '.join(str(per_stage * n + 2) for n in range(1, 5))}, ..."
        )
    if width < 1 or growth < 1 or any(stride not in (1, 2) for stride in strides):
        raise ConfigError("model.build needs width and growth of 1 or more, and strides of 1 or 2")
    widths = [width * growth**stage for stage in range(len(strides))]
    blocks = (depth - 2) // per_stage
    net = SmallResNet(blocks, widths, list(strides), residual, num_classes, in_channels)
    initialize(net, "kaiming_fan_out")
    return net

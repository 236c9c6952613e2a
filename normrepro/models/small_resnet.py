"""The residual net of He et al. (2016), section 4.2, for images of 8x8 to 32x32 pixels.

6n + 2 layers: a 3x3 stem, three stages of n two-convolution blocks of widths w, 2w, 4w, the mean
over the map and a linear layer; norm after every convolution, ReLU after the addition, shortcuts
without parameters (option A). `residual=False` gives the plain net of the same paper, which leans
on its norms far more: nothing carries a signal past a badly normalized layer. Small maps make batch
statistics scarce as well: with strides (2, 2, 2) an 8x8 image ends as one pixel, so a normalization
batch of 2 has two values a channel.

`block="bottleneck"` gives a narrow relative of ResNet-50 on the same stem: 9n + 2 layers, blocks of
1x1, 3x3 (with the stride) and 1x1 convolution to four times the width, and a 1x1 convolution
with a norm as the shortcut of each stage's first block. `block="resnext"`: of ResNeXt-50.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from normrepro.config import ConfigError
from normrepro.models.initialize import initialize


def convolution(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


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


class Bottleneck(nn.Module):
    """Three convolutions with their norms, and the shortcut around them where `residual` is on."""

    expansion, groups = 4, 1

    def __init__(self, inputs: int, outputs: int, stride: int, residual: bool) -> None:
        super().__init__()
        inner = outputs // self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = convolution(inner, inner, stride, self.groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.residual, self.downsample = residual, None
        if residual and (stride != 1 or inputs != outputs):
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        if not self.residual:
            return F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class GroupedBottleneck(Bottleneck):
    """ResNeXt's block: the 3x3 convolution in groups, over twice as many channels."""

    expansion, groups = 2, 8


KINDS = {  # class, layers, expansion
    "basic": (Block, 2, 1),
    "bottleneck": (Bottleneck, 3, Bottleneck.expansion),
    "resnext": (GroupedBottleneck, 3, GroupedBottleneck.expansion),
}


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
        block: str = "basic",
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(channels, widths[0]), nn.BatchNorm2d(widths[0])
        inputs, (kind, _, expansion) = widths[0], KINDS[block]
        for number, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
            outputs = width * expansion
            stage = [kind(inputs, outputs, stride, residual)]
            stage += [kind(outputs, outputs, 1, residual) for _ in range(blocks - 1)]
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


def depth_to_blocks(depth: int, strides: Sequence[int], per_block: int) -> int:
    """Return the blocks of each stage of a net of `depth` layers, two of them stem and classifier.

    Raises:
        ConfigError: No number of blocks gives that depth, or a stride is neither 1 nor 2.
    """
    per_stage = per_block * len(strides)
    if not strides or depth < per_stage + 2 or (depth - 2) % per_stage:
        raise ConfigError(
            f"model.build.depth={depth} must be {per_stage}n + 2 for {len(strides)} stages: "
            f"{', '.join(str(per_stage * n + 2) for n in range(1, 5))}, ..."
        )
    if any(stride not in (1, 2) for stride in strides):
        raise ConfigError(f"model.build.strides={list(strides)} must be of 1 and 2")
    return (depth - 2) // per_stage


def small_resnet(
    depth: int = 20,
    width: int = 16,
    residual: bool = True,
    num_classes: int = 10,
    in_channels: int = 1,
    strides: Sequence[int] = (1, 2, 2),
    growth: int = 2,
    block: str = "basic",
) -> SmallResNet:
    """Build the CIFAR-style residual net, or the plain one.

    Args:
        depth: Layers with weights on the main path, layers of a block * len(strides) * n + 2.
        width: Channels of the first stage, in a bottleneck the inner ones.
        residual: False leaves the shortcuts out.
        num_classes: Outputs.
        in_channels: Channels of the images.
        strides: Stride of each stage's first block, one per stage.
        growth: Factor from one stage's width to the next.
        block: "basic" (two 3x3 convolutions), "bottleneck" (1x1, 3x3, 1x1) or "resnext", a
            bottleneck of eight groups, whose width is twice the bottleneck's.
    """
    if block not in KINDS:
        raise ConfigError(f"model.build.block={block} is none of {', '.join(KINDS)}")
    blocks = depth_to_blocks(depth, strides, KINDS[block][1])
    if width < 1 or growth < 1:
        raise ConfigError("model.build needs width and growth of 1 or more")
    widths = [width * growth**stage for stage in range(len(strides))]
    net = SmallResNet(blocks, widths, list(strides), residual, num_classes, in_channels, block)
    initialize(net, "kaiming_fan_out")
    return net

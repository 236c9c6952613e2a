"""The multi-layer perceptron of XBNBlock's section 4."""

from collections import OrderedDict

from torch import nn

from normrepro.config import ConfigError
from normrepro.models.initialize import initialize


def mlp(
    layers: int = 20,
    width: int = 128,
    num_classes: int = 10,
    in_channels: int = 1,
    size: int = 28,
) -> nn.Sequential:
    """Build a perceptron: hidden layers of linear map, norm and ReLU, then a linear classifier.

    Its modules are linear1, bn1, relu1, linear2, ... and fc, so that a rule of a norm's YAML can
    tell odd layers from even ones.

    Args:
        layers: Hidden layers, each with a norm; the classifier is one more (the paper says "a
            20-layer MLP with 128 neurons in each layer").
        width: Neurons of each.
        num_classes: Outputs.
        in_channels: Channels of the images.
        size: Pixels a side of the images (N, in_channels, size, size), which are flattened.
    """
    if layers < 1 or width < 1:
        raise ConfigError("model.build.layers and model.build.width must be 1 or more")
    inputs = in_channels * size * size
    parts: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number in range(1, layers + 1):
        parts[f"linear{number}"] = nn.Linear(inputs, width)
        parts[f"bn{number}"] = nn.BatchNorm1d(width)
        parts[f"relu{number}"] = nn.ReLU()
        inputs = width
    parts["fc"] = nn.Linear(inputs, num_classes)
    net = nn.Sequential(OrderedDict(parts))
    initialize(net, "kaiming_fan_in")
    return net

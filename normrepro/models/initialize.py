"""Initializations that a recipe can ask for, applied before the norms are swapped."""

from torch import nn

from normrepro.config import ConfigError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = ("default", "kaiming_fan_out", "kaiming_fan_in")


def initialize(model: nn.Module, init: str) -> nn.Module:
    """Initialize a model in place and return it.

    Both kinds set norms to gamma 1 and beta 0, the last of a residual branch included, and the
    biases of what they draw to 0.

    Args:
        model: Freshly built model, its norm layers not yet swapped.
        init: "default" leaves what the model's own code drew. "kaiming_fan_out" draws every
            convolution from N(0, 2 / (kernel area * output channels)) (He et al. 2015, backward
            form; grouped ones too, as torch and the papers' code count) and leaves the classifier,
            which in timm may be a 1x1 convolution, and other linear layers alone. "kaiming_fan_in"
            draws convolutions and linear layers from N(0, 2 / inputs of a neuron) (He et al. 2015,
            forward form).
    """
    if init not in KINDS:
        raise ConfigError(f"recipe.init={init} is unknown: choose one of {', '.join(KINDS)}")
    if init == "default":
        return model
    forward = init == "kaiming_fan_in"
    drawn = (*CONVOLUTIONS, nn.Linear) if forward else CONVOLUTIONS
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    for module in model.modules():
        if isinstance(module, drawn) and (forward or module is not classifier):
            mode = "fan_in" if forward else "fan_out"
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model

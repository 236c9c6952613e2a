"""The small residual net, initialization, and the model configs."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from normrepro.config import ConfigError
from normrepro.models import initialize, small_resnet

MODELS = Path(__file__).parents[1] / "configs" / "model"


@pytest.mark.parametrize(("depth", "norms"), [(8, 7), (20, 19), (32, 31)])
def test_depth_counts_the_layers_with_weights(depth, norms):
    net = small_resnet(depth=depth, width=4)
    weighted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == norms


def test_resnet20_has_the_published_number_of_parameters():
    net = small_resnet(depth=20, width=16, in_channels=3)
    weights = sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert weights == 268_336  # He et al. 2016, Table 6: 0.27M
    assert sum(p.numel() for p in net.parameters()) == 268_336 + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 10


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(
    ("strides", "last"), [((1, 2, 2), 2), ((2, 2, 2), 1), ((1, 1, 1), 8), ((1, 2), 4)]
)
def test_strides_set_the_last_map(residual, strides, last):
    net = small_resnet(depth=4 * len(strides) + 2, width=4, residual=residual, strides=strides)
    maps = []
    net.get_submodule(f"layer{len(strides)}").register_forward_hook(
        lambda module, args, out: maps.append(out.shape)
    )
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert maps == [(2, 4 * 2 ** (len(strides) - 1), last, last)]


def test_a_residual_net_with_silent_branches_passes_its_stem_through():
    net = small_resnet(depth=8, width=4).eval()
    for name, module in net.named_modules():
        if name.endswith("bn2"):
            nn.init.zeros_(module.weight)
    x = torch.randn(3, 1, 8, 8)
    stem = torch.relu(net.bn1(net.conv1(x)))[:, :, ::4, ::4].mean(dim=(2, 3))  # (3, 4)
    expected = nn.functional.pad(stem, [0, 12]) @ net.fc.weight.T + net.fc.bias
    torch.testing.assert_close(net(x), expected)


def test_a_plain_net_with_silent_branches_passes_nothing():
    net = small_resnet(depth=8, width=4, residual=False).eval()
    nn.init.zeros_(net.get_submodule("layer2.0").bn2.weight)
    out = net(torch.randn(3, 1, 8, 8))
    torch.testing.assert_close(out, out[:1].expand_as(out))


@pytest.mark.parametrize(
    "options", [{"depth": 21}, {"depth": 2}, {"strides": [3, 1, 1]}, {"width": 0}, {"strides": []}]
)
def test_impossible_nets_are_refused(options):
    with pytest.raises(ConfigError, match=r"model\.build"):
        small_resnet(**options)


def test_kaiming_fan_out_reaches_every_convolution_and_norm():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(32, 256, 3),
        nn.BatchNorm2d(256),
        nn.Conv2d(256, 64, 1, bias=True),
        nn.Linear(4, 4),
    )
    nn.init.zeros_(net[1].weight)
    linear = net[3].weight.clone()
    initialize(net, "kaiming_fan_out")
    assert abs(net[0].weight.std() / math.sqrt(2 / (9 * 256)) - 1) < 0.02
    assert abs(net[2].weight.std() / math.sqrt(2 / 64) - 1) < 0.02
    assert net[2].bias.abs().max() == 0
    assert net[1].weight.min() == 1
    assert torch.equal(net[3].weight, linear)
    kept = net[0].weight.clone()
    assert torch.equal(initialize(net, "default")[0].weight, kept)
    with pytest.raises(ConfigError, match=r"recipe\.init=orthogonal"):
        initialize(net, "orthogonal")


@pytest.mark.parametrize("name", ["resnet50", "resnet18", "timm", "resnet_digits"])
def test_model_configs_build_a_classifier(name):
    model = OmegaConf.load(MODELS / f"{name}.yaml")
    channels = 1 if name == "resnet_digits" else 3
    if name == "timm":
        model.name = "resnet10t"
    cfg = OmegaConf.create({"model": model, "data": {"channels": channels}})
    net = instantiate(cfg.model.build, num_classes=7).eval()
    assert cfg.model.name
    assert net(torch.randn(1, channels, 32, 32)).shape == (1, 7)

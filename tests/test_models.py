"""The nets of this package, and initialization."""

import math

import pytest
import torch
from torch import nn

from normrepro.config import ConfigError
from normrepro.models import (
    initialize,
    mlp,
    preact_resnet,
    small_densenet,
    small_inception,
    small_mobilenet,
    small_resnet,
    small_vgg,
)


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


def test_kaiming_fan_in_draws_linear_layers_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Linear(200, 300))
    initialize(net, "kaiming_fan_in")
    assert abs(net[0].weight.std() / math.sqrt(2 / (9 * 16)) - 1) < 0.02
    assert abs(net[2].weight.std() / math.sqrt(2 / 200) - 1) < 0.02
    assert net[2].bias.abs().max() == 0


def test_grouped_convolutions_count_all_outputs_and_a_classifier_is_left_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(256, 256, 3, groups=8), nn.Conv2d(256, 10, 1))
    net.get_classifier = lambda: net[1]
    before = net[1].weight.clone()
    initialize(net, "kaiming_fan_out")
    assert abs(net[0].weight.std() / math.sqrt(2 / (9 * 256)) - 1) < 0.02
    assert torch.equal(net[1].weight, before)


def test_a_preactivation_net_normalizes_before_its_branches_split_where_shapes_change():
    net = preact_resnet(depth=14, channels=4, in_channels=1).eval()
    for name, module in net.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)  # branches are silent: only shortcuts are left
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    x = torch.randn(3, 1, 8, 8)
    y = net.conv1(x)
    y = torch.relu(net.layer1[0].bn1(y))
    for stage in (net.layer2, net.layer3):
        y = stage[0].shortcut(torch.relu(stage[0].bn1(y)))
    expected = net.fc(torch.relu(net.bn(y)).mean(dim=(2, 3)))
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (56, 9), (110, 18), (254, 42)])
def test_preactivation_nets_have_the_papers_depths(depth, blocks):
    with torch.device("meta"):
        net = preact_resnet(depth=depth, width=2)
    assert [len(net.get_submodule(f"layer{i}")) for i in (1, 2, 3)] == [blocks] * 3
    assert net.layer3[0].conv2.weight.shape == (128, 128, 3, 3)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == depth - 1


def test_bottlenecks_have_the_names_and_shortcuts_of_resnet50():
    net = small_resnet(depth=29, width=8, block="bottleneck")
    names = {name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    expected = {"bn1"} | {f"{block}.bn{k}" for block in blocks for k in (1, 2, 3)}
    assert names == expected | {f"layer{i}.0.downsample.1" for i in (1, 2, 3)}
    assert net.layer3[0].conv2.stride == (2, 2)
    assert net.layer3[0].conv3.weight.shape == (128, 32, 1, 1)
    nn.init.zeros_(net.eval().layer1[1].bn3.weight)
    x = torch.rand(2, 32, 8, 8)
    torch.testing.assert_close(net.layer1[1](x), x)  # a silent branch passes what is positive


def test_a_resnext_block_has_groups_and_twice_the_width():
    net = small_resnet(depth=11, width=16, block="resnext")
    conv = net.layer2[0].conv2
    assert (conv.groups, conv.in_channels, conv.out_channels) == (8, 32, 32)
    assert net.layer2[0].conv3.out_channels == 64
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_the_perceptron_has_a_norm_after_each_hidden_layer():
    net = mlp(layers=3, width=8, num_classes=5, in_channels=1, size=4)
    kinds = [type(m).__name__ for m in net]
    assert kinds == ["Flatten", *["Linear", "BatchNorm1d", "ReLU"] * 3, "Linear"]
    assert [net.linear1.in_features, net.fc.out_features] == [16, 5]
    assert net(torch.randn(2, 1, 4, 4)).shape == (2, 5)
    assert abs(mlp().linear2.weight.std() / math.sqrt(2 / 128) - 1) < 0.05


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (mlp, {"layers": 0}),
        (preact_resnet, {"depth": 21}),
        (preact_resnet, {"width": 0}),
        (small_resnet, {"block": "wide"}),
        (small_resnet, {"block": "bottleneck", "depth": 26}),
        (small_vgg, {"stages": [[8], []]}),
        (small_inception, {"width": 0}),
        (small_densenet, {"blocks": []}),
        (small_mobilenet, {"stages": [[6, 12, 1, 1]]}),
    ],
)
def test_impossible_options_of_the_other_nets_are_refused(build, options):
    with pytest.raises(ConfigError, match=r"model\.build"):
        build(**options)

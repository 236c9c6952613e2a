"""XBNBlock's disturbed batch norm (eq. 5)."""

import math
import re

import pytest
import torch
import torchvision
from torch import nn

from normrepro import convert, norms
from tests.oracles.checks import close, draw


def used(layer: norms.Normalizer) -> norms.Normalizer:
    """The layer in evaluation mode, with running statistics as training leaves them."""
    layer = layer.double()
    layer(draw(16, layer.channels, 5, seed=3))
    return layer.eval().requires_grad_(False)


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_disturbance_is_equation_5(per: str) -> None:
    layer, plain = (
        used(kind) for kind in (norms.DisturbedBatchNorm(6, delta=0.4, per=per), norms.BatchNorm(6))
    )
    x = draw(4, 6, 5)
    mean = (1 + layer.delta_mean) * plain.running_mean
    var = (1 + layer.delta_var) * plain.running_var
    close(layer(x), (x - mean[:, None]) / (var + 1e-5).sqrt()[:, None])
    for noise in (layer.delta_mean, layer.delta_var):
        assert 0 < noise.abs().max() < 0.4
        assert len(noise.unique()) == (6 if per == "channel" else 1)
    scale, shift = layer.inference_affine()
    close(layer(x), x * scale[:, None] + shift[:, None])
    assert layer.state_dict().keys() == plain.state_dict().keys()


def test_disturbance_grows_with_its_magnitude() -> None:
    """X-10: none at 0; one pattern, scaled."""
    x, plain = draw(64, 6, 5), used(norms.BatchNorm(6))
    changes = []
    for delta in (0.0, 0.1, 0.2, 0.4, 0.8):
        layer = used(norms.DisturbedBatchNorm(6, delta=delta, seed=1))
        changes.append(float((layer(x) - plain(x)).norm()))
        assert ((1 + layer.delta_var) > 0).all()
    assert changes[0] == 0
    assert changes == sorted(set(changes))
    for delta, per in ((1.0, "channel"), (-0.1, "channel"), (0.1, "group")):
        with pytest.raises(ValueError, match="must be in"):
            norms.DisturbedBatchNorm(6, delta=delta, per=per)


def test_errors_of_stacked_batch_norms_multiply_and_a_layer_norm_ends_them() -> None:
    """X-11: each factor (1 + delta)^-1/2 on the scale adds up in logarithms."""
    layers = [
        norms.DisturbedBatchNorm(6, eps=0.0, delta=0.5, per="layer", seed=i).double().eval()
        for i in range(5)
    ]
    x = norms.LayerNorm(6, eps=0.0).double()(draw(8, 6, 50)).detach()
    factors = [float((1 + layer.delta_var[0]) ** -0.5) for layer in layers]
    with torch.no_grad():
        close(nn.Sequential(*layers)(x), x * math.prod(factors))
        layers.insert(3, norms.LayerNorm(6, eps=0.0).double())
        close(nn.Sequential(*layers)(x), x * math.prod(factors[3:]))


def test_disturbed_blocks_of_a_trained_net() -> None:
    """Figure 8: the first norm of the first six blocks, for the length of the block."""
    torch.manual_seed(0)
    net = convert(torchvision.models.resnet18(num_classes=4), "bn", group=2)
    x = draw(2, 3, 32, 32).float()
    with norms.step(net):
        net(x)
    net.eval().requires_grad_(False)
    before, layers, outputs = net(x), dict(net.named_modules()), {}
    for seed in (0, 1, 0):
        with norms.disturbed(net, 0.3, seed) as names:
            assert len(names) == 6
            assert all(re.fullmatch(r"layer[123]\.[01]\.bn1", name) for name in names)
            noise = [net.get_submodule(n).delta_mean for n in names]
            assert not torch.equal(noise[0], noise[1])
            assert net.get_submodule(names[0]).running_var is layers[names[0]].running_var
            assert torch.equal(outputs.setdefault(seed, net(x)), net(x))
    assert not torch.equal(outputs[0], outputs[1])
    assert dict(net.named_modules()) == layers
    assert torch.equal(net(x), before)
    with norms.disturbed(net, 0.0, match="bn", first=None) as names:
        assert len(names) == 17  # those of the shortcuts have other names
        assert torch.equal(net(x), before)
    with (
        pytest.raises(ValueError, match="matches 'nothing'"),
        norms.disturbed(net, 0.1, match="nothing"),
    ):
        pass

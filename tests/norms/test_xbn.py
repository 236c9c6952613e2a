"""XBNBlock: its placements in real nets, and what its batch-free norms do."""

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn

from normrepro import convert, norms
from tests.oracles.checks import close, draw

BLOCKS = {"resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}


def built(norm: str, model: str = "resnet50") -> nn.Module:
    with torch.device("meta"):
        net = getattr(torchvision.models, model)(weights=None)
    return convert(net, norm, group=32)


def blocks(model: str) -> list[str]:
    """The names of a net's blocks in its order."""
    return [f"layer{i}.{j}" for i, n in enumerate(BLOCKS[model], 1) for j in range(n)]


PLACES = [
    *((f"xbn_p{p}", f"bn{p}", 1, False, norms.GroupNorm) for p in (1, 2, 3)),
    *((f"xbn_p{p}_stem", f"bn{p}", 1, True, norms.GroupNorm) for p in (1, 2, 3)),
    *((f"xbn_p2_d{k}", "bn2", k, False, norms.GroupNorm) for k in (2, 4, 8)),
    *((f"xbn_in_d{k}", "bn2", k, False, norms.InstanceNorm) for k in (2, 4, 8)),
    ("xbn_in", "bn2", 1, False, norms.InstanceNorm),
    ("xbn_in_stem", "bn2", 1, True, norms.InstanceNorm),
    ("xbn_gw", "bn2", 1, False, norms.GroupWhitening),
]


@pytest.mark.parametrize(("name", "norm", "every", "stem", "kind"), PLACES, ids=lambda v: str(v))
def test_placement(name: str, norm: str, every: int, stem: bool, kind: type) -> None:
    """X-12: which norms are replaced; the rest, downsampling included, stay batch norms."""
    for model in BLOCKS:
        net = built(name, model)
        found = {n: m for n, m in net.named_modules() if isinstance(m, norms.Normalizer)}
        replaced = [n for n, m in found.items() if type(m) is kind]
        wanted = [f"{block}.{norm}" for block in blocks(model)[every - 1 :: every]]
        assert replaced == ["bn1"] * stem + wanted
        assert {type(m) for m in found.values()} == {kind, norms.BatchNorm}
        assert len(found) == 3 * len(blocks(model)) + 5
        for layer in (found[n] for n in replaced if kind is not norms.InstanceNorm):
            assert layer.groups == 64


@pytest.mark.parametrize(
    ("norm", "model", "number"),
    [("xbn_p2", "resnet50", 16), ("xbn_p2", "resnet101", 33)]
    + [(f"xbn_p2_d{k}", "resnet50", 16 // k) for k in (2, 4, 8)]
    + [(f"xbn_p2_d{k}", "resnet101", 33 // k) for k in (2, 4, 8)],
)
def test_number_of_blocks(norm: str, model: str, number: int) -> None:
    count = Counter(built(norm, model).conversion.replaced.values())
    total = {"resnet50": 53, "resnet101": 104}[model]
    assert count == {"GroupNorm": number, "BatchNorm": total - number}


@pytest.mark.parametrize(
    ("norm", "parameters"), [("xbn_p2_stem", 25_557_032), ("xbn_in_stem", 25_549_352)]
)
def test_released_models_have_as_many_parameters(norm: str, parameters: int) -> None:
    """IN without affine lacks 7680."""
    assert sum(p.numel() for p in built(norm).parameters()) == parameters


def test_groups_of_stage_one_are_instance_norm() -> None:
    """X-2: 64 channels in 64 groups; GN(1) is LN, GN(C) is IN."""
    layer = built("xbn_p2").get_submodule("layer1.0.bn2")
    assert layer.groups == layer.channels == 64
    x = draw(3, 8, 4, 2)
    with torch.no_grad():
        many, one = (norms.GroupNorm(8, groups=g, eps=0.0).double()(x) for g in (8, 1))
        var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        close(many, (x - mean) / var.sqrt())
        var, mean = torch.var_mean(x, (1, 2, 3), correction=0, keepdim=True)
        close(one, (x - mean) / var.sqrt())


FREE = {
    "gn": lambda: norms.GroupNorm(8, groups=4),
    "ln": lambda: norms.LayerNorm(8),
    "in": lambda: norms.InstanceNorm(8),
    "gw": lambda: norms.GroupWhitening(8, groups=4),
}


@pytest.mark.parametrize("name", FREE)
def test_batch_free_norms_do_the_same_in_both_modes(name: str) -> None:
    """X-1: to the bit, and each image alone; batch norm does not."""
    x = draw(6, 8, 4, 3)
    layer, bn = FREE[name]().double(), norms.BatchNorm(8).double()
    with torch.no_grad():
        trained = layer(x)
        assert torch.equal(trained, layer.eval()(x))
        close(torch.cat([layer(image[None]) for image in x]), trained)
        assert not torch.allclose(bn(x), bn.eval()(x))


def test_instance_norm_constrains_more_than_group_norm() -> None:
    """X-9: what a norm leaves of a change of each channel's scale and offset, mean of 30 draws."""
    kinds = [norms.GroupNorm(8, groups=g, eps=0.0).double() for g in (1, 2, 4, 8)]
    changes = torch.zeros(5)
    with torch.no_grad():
        for seed in range(0, 90, 3):
            x = draw(8, 8, 6, 6, seed=seed, shift=0.0)
            scale, offset = (0.2 * draw(8, 1, 1, seed=seed + i, shift=0.0) for i in (1, 2))
            for i, layer in enumerate([nn.Identity(), *kinds]):
                one, other = layer(x), layer((1 + scale) * x + offset)
                changes[i] += float((other - one).norm() / one.norm()) / 30
                close(layer(x) if i == 0 else layer(1.3 * x - 0.2), one)
    assert changes[-1] < 1e-12
    assert (changes.diff() < -0.005).all()


def test_config_of_the_disturbed_blocks() -> None:
    found = built("bn_disturbed").conversion.replaced
    disturbed = [n for n, kind in found.items() if kind == "DisturbedBatchNorm"]
    assert disturbed == [f"{block}.bn1" for block in blocks("resnet50")[:6]]

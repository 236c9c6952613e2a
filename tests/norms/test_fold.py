"""Folding: the same outputs without the norms."""

from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from normrepro import convert, fold, norms
from normrepro.norms.centre import is_centred
from normrepro.norms.conversion import all_norms
from tests.norms.nets import NET_CASES, NETS, Net, outputs, stir

LAYERS = {
    "bn": norms.BatchNorm,
    "brn": norms.BatchRenorm,
    "mabn": norms.MABN,
    "cbn": norms.CBN,
    "cbn_official": lambda c, **options: norms.CBN(c, variant="official", **options),
    "mabn_official": lambda c, **options: norms.MABN(c, variant="official", **options),
}


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", [None, "mabn"])
@pytest.mark.parametrize("net", NET_CASES)
def test_folded_architectures_put_out_the_same(net: Net, name: str | None) -> None:
    """torch's own batch norms (None), and a conversion whose weights are centred."""
    model, example = net.build().double(), net.example(torch.float64)
    if name is not None:
        stir(convert(model, name, example=example))
    before = outputs(model, example)
    fold(model, example)
    assert relative(outputs(model, example), before) < 1e-10
    aux = 2 if net.name == "inception_v3" else 0  # these run in training only
    whole = net.name == "mixnet_s"  # its concatenations are of convolutions alone
    assert len(model.folding.folded) == net.paired - aux + (net.sliced if whole else 0)
    assert len(model.folding.folded) + len(model.folding.left) == net.norms + net.kept
    assert len(all_norms(model)) == len(model.folding.left)


@pytest.mark.parametrize("name", [None, "mabn"])
@pytest.mark.parametrize("net", [n for n in NETS if not n.slow], ids=lambda net: net.name)
def test_folded_architectures_in_float32(net: Net, name: str | None) -> None:
    model, example = net.build(), net.example()
    if name is not None:
        stir(convert(model, name, example=example))
    before = outputs(model, example)
    assert relative(outputs(fold(model, example), example), before) < 1e-4


KINDS = {
    "linear": (lambda: nn.Linear(6, 4), (8, 6)),
    "1d": (lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1), (8, 6, 7)),
    "2d": (lambda: nn.Conv2d(6, 4, 3, groups=2, dilation=2, bias=False), (8, 6, 6, 5)),
    "circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (8, 6, 4, 4)),
    "3d": (lambda: nn.Conv3d(3, 4, 2), (8, 3, 3, 3, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2, stride=2), (8, 6, 3, 3)),
    "transposed-1d": (lambda: nn.ConvTranspose1d(4, 4, 2, bias=False), (8, 4, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_norm_and_kind_of_convolution(
    kind: str, layer: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    build, shape = KINDS[kind]
    model = nn.Sequential(build(), LAYERS[layer](4, group=2)).to(dtype)
    if "transposed" not in kind:
        model[1].attach(model[0])
    x = torch.randn(*shape, dtype=dtype)
    for _ in range(3):
        model(x + torch.randn_like(x)).sum().backward()
    before = outputs(stir(model).eval(), x)
    fold(model, x)
    assert model.folding.folded == {"1": ["0"]}
    assert type(model[1]) is nn.Identity
    assert not is_centred(model[0])
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert relative(outputs(model, x), before) < tolerance


@pytest.mark.parametrize("frozen", [FrozenBatchNorm2d, FrozenBatchNormAct2d, norms.FrozenBatchNorm])
def test_frozen_norms_fold_too(frozen: type) -> None:
    model = stir(nn.Sequential(nn.Conv2d(3, 4, 1), frozen(4))).eval()
    x = torch.randn(2, 3, 5, 5)
    before = outputs(model, x)
    fold(model, x)
    assert model.folding.folded == {"1": ["0"]}
    assert relative(outputs(model, x), before) < 1e-5


class Branches(nn.Module):
    """A concatenation of convolutions, one of them pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1, bias=False)
        self.pool, self.bn = nn.AvgPool2d(2), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 5, H / 2, W / 2)."""
        return self.bn(torch.cat([self.pool(self.one(x)), self.two(x[:, :, ::2, ::2])], 1))


def test_concatenations_fold_into_each_convolution() -> None:
    model, x = stir(Branches()).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    before = outputs(model, x)
    fold(model, x)
    assert model.folding.folded == {"bn": ["one", "two"]}
    assert relative(outputs(model, x), before) < 1e-12


@pytest.mark.parametrize("spoil", [lambda m: m.train(), lambda m: m[1].train()])
def test_training_mode_is_refused(spoil: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    spoil(model)
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        fold(model, torch.randn(2, 3, 5, 5))


def test_example_is_guessed_and_tied_weights_stay_apart() -> None:
    model = timm.create_model("resnet10t").eval()
    fold(model)
    assert len(model.folding.folded) == 14
    conv = nn.Conv2d(3, 4, 1)
    model = stir(nn.Sequential(conv, nn.BatchNorm2d(4))).eval()
    model.other = nn.Conv2d(3, 4, 1)
    model.other.weight = conv.weight
    weight = conv.weight.clone()
    model.forward = lambda x: model[1](model[0](x))
    fold(model, torch.randn(2, 3, 5, 5))
    assert torch.equal(model.other.weight, weight)
    assert not torch.equal(conv.weight, weight)

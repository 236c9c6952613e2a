"""Every choice of model takes real training steps with the normalizers that fit it."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from normrepro import config, convert, norms
from normrepro.distributed import Ranks
from normrepro.hints import groups
from normrepro.training import build, optim
from normrepro.training.trainer import Trainer
from tests.test_architectures import PROXIES, SIZES


class Noise(SimpleNamespace):
    """A source of random images that are the same in every step."""


def noise(cfg: config.DictConfig) -> Noise:
    shape = (cfg.data.channels, cfg.data.size, cfg.data.size)
    return Noise(shape=shape, classes=10, train_size=64, val_size=8, steps_per_epoch=2)


def two_steps(*overrides: str) -> tuple[nn.Module, list[float]]:
    """Train two steps through the trainer itself; the converted model, and the losses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cfg = config.compose([*overrides, "run.device=cpu"])
    config.check(cfg)
    ranks, data = Ranks(0, 1, torch.device("cpu")), noise(cfg)
    net = build.model(cfg, data.classes, data.shape, ranks, 2)
    optimizer = optim.build(net, build.instantiate(cfg.recipe.optimizer), cfg.recipe.decay_norms)
    task = build.instantiate(cfg.task.build)
    trainer = Trainer(cfg, ranks, data, net, task, optimizer, 2)
    torch.manual_seed(1)
    x, y = torch.randn(cfg.batch.total, *data.shape), torch.arange(cfg.batch.total) % 10
    losses = []
    for _ in range(2):
        before = [p.detach().clone() for p in net.parameters()]
        losses.append(float(trainer.step(x, y).loss))
        trainer.state.step += 1
        moved = [not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)]
        assert sum(moved) > 0.9 * len(moved)
    with torch.no_grad():
        assert net.eval()(x).isfinite().all()
    return net, losses


DIGITS = ["data=digits", "recipe=digits", "batch.total=8", "batch.devices=2", "batch.norm=2"]


FAMILIES = {"gn": "GroupNorm", "cbn": "CBN", "bn": "BatchNorm", "evalnorm": "EvalNorm"}


@pytest.mark.parametrize(
    "norm",
    ["gn", "cbn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bn", "evalnorm"))],
)
@pytest.mark.parametrize("name", PROXIES)
def test_proxies_train_with_every_family_of_normalizers(name: str, norm: str) -> None:
    # In a perceptron 32 groups are pairs of neurons, which normalize to 1 and -1: no gradient.
    fewer = ["norm.layer.groups=4"] if (name, norm) == ("mlp_digits", "gn") else []
    net, _ = two_steps(f"model={name}", f"norm={norm}", *DIGITS, *fewer)
    replaced = net.conversion.replaced
    assert len(replaced) == SIZES[name].norms
    assert set(replaced.values()) == {FAMILIES[norm]}


def converted(net: nn.Module, norm: str) -> nn.Module | None:
    """A proxy with a norm, None where the norm's own words say that it does not fit."""
    try:
        return convert(net, norm, group=2, example=torch.zeros(4, 1, 8, 8))
    except (ValueError, InstantiationException) as error:
        if not re.search("match|divide", f"{error} {error.__cause__}"):
            raise
        return None


@pytest.mark.slow
@pytest.mark.parametrize("norm", groups()["norm"])
def test_each_proxy_trains_with_a_norm_or_is_refused_with_a_reason(norm: str) -> None:
    trained = []
    for name in PROXIES:
        net = instantiate(
            config.compose([f"model={name}", "data=digits"]).model.build, num_classes=10
        )
        net = converted(net, norm)
        if net is None:
            continue
        for layer in net.modules():
            if isinstance(layer, norms.Normalizer):
                layer.run_length = 2
        with norms.step(net):
            net(torch.randn(4, 1, 8, 8)).square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
        trained.append(name)
    if norm.startswith(("xbn", "bn_disturbed")):
        assert "bottleneck_digits" in trained
    elif not norm.startswith(("gw", "ibn", "in")):
        assert trained == PROXIES


IMAGENET = ["data=imagenet", "batch.total=4", "batch.devices=2", "batch.norm=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "size"),
    [
        ("resnet18", "cbn", 32),
        ("resnet50", "mabn", 32),
        ("resnet101", "xbn_p2", 32),
        ("resnext50", "xbn_p2_d2", 32),
        ("resnext101", "gn", 64),
        ("resnetv2_50", "evalnorm", 64),
        ("vgg16", "cbn", 32),
        ("inception_v3", "cbn", 96),
        ("inception_v3", "gn", 96),
        ("densenet121", "cbn", 64),
        ("mobilenet_v2", "cbn", 64),
        ("mobilenet_v2", "gn", 64),
    ],
)
def test_the_papers_nets_take_two_steps(name: str, norm: str, size: int) -> None:
    net, _ = two_steps(*IMAGENET, f"model={name}", f"norm={norm}", f"data.size={size}")
    assert len(net.conversion.replaced) == SIZES[name].norms


def test_cifars_net_and_the_perceptron_take_two_steps() -> None:
    small = ["batch.total=8", "batch.devices=1", "batch.norm=4"]
    net, _ = two_steps("data=cifar10", "model=resnetv2_cifar", "norm=evalnorm", *small)
    assert set(net.conversion.replaced.values()) == {"EvalNorm"}
    net, losses = two_steps("data=mnist", "norm=bn", "norm.layer.momentum=0.9", "batch.total=64")
    assert len(net.conversion.replaced) == 20
    assert losses[1] < losses[0]

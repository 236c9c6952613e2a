"""The layers that configs/norm lists, for tests of what all of them keep to."""

import json
import re
from functools import lru_cache
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from normrepro import norms
from normrepro.hints import groups, load_choice

C = 64  # as many as the channel groups of the largest configuration
SHAPES = [(8, C), (8, C, 5), (8, C, 4, 4), (8, C, 2, 3, 4)]
CHOICES = groups()["norm"]


@lru_cache
def choice(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(load_choice("norm", name), resolve=True)


def specs(name: str) -> dict[str, Any]:
    """The layers of a choice: its own and those of its rules."""
    config = choice(name)
    rules = {f"{name}.rules[{i}]": r["layer"] for i, r in enumerate(config.get("rules") or [])}
    return {name: config["layer"]} | rules


ALL = {key: spec for name in CHOICES for key, spec in specs(name).items()}
# Choices share layers: each is tested once, under the first name that has it.
FIRST = {json.dumps(spec, sort_keys=True): key for key, spec in reversed(ALL.items())}
LAYERS = {key: ALL[key] for key in reversed(FIRST.values())}
each_layer = pytest.mark.parametrize("name", LAYERS)


def build(name: str, group: int | None = 2, replicas: int = 2) -> norms.Normalizer:
    torch.manual_seed(0)
    layer = instantiate(LAYERS[name])(C, group=group, replicas=replicas)
    layer.run_length = 10
    return layer


def block(name: str) -> nn.Sequential:
    """A convolution and the layer that is told of it."""
    layer = build(name)
    model = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), layer).double()
    if model[1].wants_conv:
        model[1].attach(model[0])
    return model


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def train(model: nn.Module, steps: range, shape: tuple[int, ...] = (8, 3, 4, 4)) -> list[Tensor]:
    """Some steps of gradient descent; all that can be seen of them."""
    seen = []
    for i in steps:
        x = draw(*shape, seed=i).requires_grad_()
        model.zero_grad()
        with norms.step(model):
            y = model(x)
            (y * draw(*y.shape, seed=100 + i)).sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad
        seen += [y.detach(), x.grad]
    return seen + [v.clone() for v in model.state_dict().values()]


def tried(layer: nn.Module, x: Tensor, told: str) -> Tensor | None:
    """The layer's output, or None where it refuses x in words that say why."""
    try:
        return layer(x)
    except ValueError as error:
        if not re.search(told, str(error)):
            raise
        return None

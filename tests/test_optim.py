"""Parameter groups, the optimizer's construction, and the learning rate's factor."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from normrepro.config import ConfigError, register_resolvers
from normrepro.models import small_resnet
from normrepro.training.optim import build, lr_factor, parameter_groups, set_lr

RECIPES = Path(__file__).parents[1] / "configs" / "recipe"
STEP = {"name": "step", "at": [0.25, 0.5, 0.75], "factor": 0.1}


def test_norms_decay_unless_told_otherwise():
    net = small_resnet(depth=8, width=4)
    (group,) = parameter_groups(net, 0.1)
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == len(list(net.parameters()))
    weights, norms = parameter_groups(net, 0.1, decay_norms=False)
    assert (weights["weight_decay"], norms["weight_decay"]) == (0.1, 0.0)
    assert len(norms["params"]) == 2 * 7
    assert net.fc.bias in set(weights["params"])  # a bias of a linear layer is no beta


def test_groups_skip_frozen_parameters_and_hold_shared_ones_once():
    norm = nn.GroupNorm(2, 4)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.PReLU(), norm)
    net[0].bias.requires_grad_(False)
    weights, norms = parameter_groups(net, 0.1, decay_norms=False)
    assert [id(p) for p in weights["params"]] == [id(net[0].weight), id(net[2].weight)]
    assert [id(p) for p in norms["params"]] == [id(norm.weight), id(norm.bias)]


@pytest.mark.parametrize("decay_norms", [True, False])
def test_sgd_decays_what_it_should(decay_norms):
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))
    before = net[0].weight.detach().clone()
    optimizer = build(net, partial(torch.optim.SGD, lr=1.0, weight_decay=0.5), decay_norms)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(net[0].weight, before / 2)
    torch.testing.assert_close(net[1].weight, torch.full((2,), 0.5 if decay_norms else 1.0))


def test_step_schedule_drops_exactly_where_the_paper_says():
    drops = {0: 1.0, 149_999: 1.0, 150_000: 0.1, 300_000: 0.01, 450_000: 1e-3, 599_999: 1e-3}
    for step, factor in drops.items():
        assert lr_factor(step, 600_000, STEP) == pytest.approx(factor)
    thirds = {"name": "step", "at": [1 / 3, 2 / 3], "factor": 0.5}
    assert [lr_factor(s, 300, thirds) for s in (99, 100, 199, 200)] == [1.0, 0.5, 0.5, 0.25]


def test_cosine_falls_from_one_to_almost_nothing():
    values = [lr_factor(step, 100, {"name": "cosine"}) for step in range(100)]
    assert values[0] == 1
    assert values[50] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)
    assert values[99] == pytest.approx(0.5 * (1 + math.cos(0.99 * math.pi)))


def test_warmup_rises_linearly_and_multiplies():
    values = [
        lr_factor(step, 100, {"name": "step", "at": [], "factor": 1}, 0.1) for step in range(12)
    ]
    assert values == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1, 1])
    plain = lr_factor(4, 100, {"name": "cosine"})
    assert lr_factor(4, 100, {"name": "cosine"}, 0.1) == pytest.approx(plain / 2)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match=r"recipe\.schedule\.name=poly"):
        lr_factor(0, 10, {"name": "poly"})


def test_set_lr_starts_from_the_initial_rate_also_after_loading_a_state():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.4)
    assert set_lr(optimizer, 0.5) == pytest.approx(0.2)
    again = torch.optim.SGD(net.parameters(), lr=0.4)
    again.load_state_dict(optimizer.state_dict())
    assert set_lr(again, 0.1) == pytest.approx(0.04)


@pytest.mark.parametrize(("name", "total"), [("digits", 64), ("mabn_imagenet", 256)])
def test_recipes_build_their_optimizer_at_their_rate(name, total):
    register_resolvers()
    cfg = OmegaConf.load(RECIPES / f"{name}.yaml")
    recipe = cfg.recipe
    assert (recipe.name, cfg.batch.total) == (name, total)
    assert (recipe.epochs is None) != (recipe.steps is None)
    net = small_resnet(depth=8, width=4)
    optimizer = build(net, instantiate(recipe.optimizer), recipe.decay_norms)
    (group,) = optimizer.param_groups
    assert group["lr"] == pytest.approx(0.1)
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)
    assert lr_factor(0, 1000, recipe.schedule, recipe.warmup) == 1
    cfg.batch.total = total // 2
    assert recipe.optimizer.lr == pytest.approx(0.05)

"""CBN in use: its state through steps, copies, checkpoints and precisions."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normrepro import norms
from tests.norms.cbn_pair import images, pair
from tests.oracles.checks import close

OPTIONS = [
    {"order": 1, "burn_in": 1},
    {"order": 2, "group": 2},
    {"order": 0, "replicas": 2},
    {"order": 1, "variant": "official", "replicas": 2, "group": 1, "window": 4},
]
each = pytest.mark.parametrize("options", OPTIONS, ids=str)


class Tower(nn.Module):
    """Two blocks, the second of which is used twice on maps of one size."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norms.CBN(4, **options))
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norms.CBN(4, **options))
        for block in (self.first, self.twice):
            block[1].attach(block[0])

    def forward(self, y: Tensor, keep: Callable[..., Tensor] | None = None) -> Tensor:
        keep = keep or (lambda block, x: block(x))
        return keep(self.twice, keep(self.twice, keep(self.first, y).relu()).relu())


def tower(**options: Any) -> Tower:
    return Tower(**{"window": 3} | options).double()


def train(net: nn.Module, start: int, steps: int, keep: Any = None) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(start, start + steps):
        optimizer.zero_grad()
        with norms.step(net):
            net(images(step).requires_grad_(), keep).sin().square().mean().backward()
            optimizer.step()
    return net.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@each
def test_state_goes_on_bit_by_bit(options: dict[str, Any]) -> None:
    """Saved and loaded, copied, pickled: also within a step, which the copy is then out of."""
    net = tower(**options)
    train(net, 0, 4)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = tower(**options)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    others = [fresh, copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    with norms.step(net) as s:
        net.first[0](images(9))
        others.append(copy.deepcopy(net))
        s.skip()
    assert all(o.first[1].sources[0].conv is o.first[0] for o in others if o.first[1].order)
    assert not any(s.records for o in others for s in o.first[1].sources)
    expected = train(net, 4, 3)
    for other in others:
        same(expected, train(other, 4, 3))
    assert expected["twice.1.pushed"].shape == (2,)  # a window for each call
    rings = [v for n, v in expected.items() if n.startswith("twice.1.window_")]
    calls = 1 if options.get("replicas") else 0
    assert all(v.shape[calls] == 2 for v in rings)
    assert rings


@each
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_changes_nothing(options: dict[str, Any], reentrant: bool) -> None:
    def keep(block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=reentrant)

    plain, kept = tower(**options), tower(**options)
    expected, found = train(plain, 0, 6), train(kept, 0, 6, keep)
    for name in expected:  # the shared block's gradients may add up in another order
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    assert not any(s.records for s in kept.first[1].sources)


def test_calls_of_a_step_have_windows_of_their_own() -> None:
    """A pair used twice in a step is two pairs whose running statistics are averaged."""
    conv, layer = pair()
    singles = [copy.deepcopy((conv, layer)) for _ in range(2)]
    for step in range(5):
        ys = images(2 * step), images(2 * step + 1)
        with norms.step(layer):
            found = [layer(conv(y)) for y in ys]
        for (one, alone), y, x in zip(singles, ys, found, strict=True):
            with norms.step(alone):
                assert torch.equal(alone(one(y)), x)
            with torch.no_grad():
                one.weight += 0.1 * torch.ones_like(one.weight)
        with torch.no_grad():
            conv.weight += 0.1 * torch.ones_like(conv.weight)
    mean = (singles[0][1].running_mean + singles[1][1].running_mean) / 2
    close(layer.running_mean, mean)


def test_a_step_that_a_grad_scaler_drops_leaves_no_trace() -> None:
    net = tower()
    train(net, 0, 3)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with norms.step(net, scale=scaler.get_scale()) as s:
        loss = net(images(9)).square().mean() * float("inf")
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:
            s.skip()
    same(before, net.state_dict())


@pytest.mark.parametrize("frozen", [False, True])
def test_forwards_without_gradients_count(frozen: bool) -> None:
    """no_grad, and nothing that requires gradients: the same outputs and the same state."""
    (conv, layer), (other, quiet) = pair(), pair()
    if frozen:
        other.requires_grad_(False), quiet.requires_grad_(False)
    for step in range(4):
        with norms.step(layer):
            x = layer(conv(images(step)))
        with norms.step(quiet), torch.set_grad_enabled(frozen):
            assert torch.equal(quiet(other(images(step))), x)
        with torch.no_grad():
            conv.weight += 0.1
            other.weight += 0.1
    same(layer.state_dict(), quiet.state_dict())


@pytest.mark.parametrize("group", [None, 1, 2])
def test_replicas_are_layers_of_their_own(group: int | None) -> None:
    conv, layer = pair(replicas=2, group=group, window=4)
    singles = [copy.deepcopy(pair(group=group, window=4)[1]) for _ in range(2)]
    convs = [copy.deepcopy(conv) for _ in range(2)]
    for alone, one in zip(singles, convs, strict=True):
        alone.detach()
        alone.attach(one)
    for step in range(5):
        y = images(step, 8)
        with norms.step(layer):
            x = layer(conv(y))
        for i, (alone, one) in enumerate(zip(singles, convs, strict=True)):
            with norms.step(alone):
                close(alone(one(y[4 * i : 4 * i + 4])).detach(), x[4 * i : 4 * i + 4].detach())
        for each_conv in (conv, *convs):
            with torch.no_grad():
                each_conv.weight += 0.1
    for name in ("running_var", "window_mean", "window_slope0"):
        both = torch.stack([getattr(alone, name) for alone in singles])
        close(getattr(layer, name), both)


def test_no_host_reads_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the counters are known, no step reads a tensor back."""
    net = tower(burn_in=1)
    train(net, 0, 3)

    def read(*args: Any) -> None:
        raise AssertionError("a tensor was read by the host")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, read)
    with norms.step(net):
        net(images(5)).square().mean().backward()

"""CBN and the convolutions before it: what is remembered, recognized, refused, sliced, pooled."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrepro import norms
from tests.norms.cbn_pair import images, move, pair
from tests.oracles.checks import broadcast, close, draw, statistics


class Branches(nn.Module):
    """Channels from two convolutions, one of them pooled, and from the input itself."""

    def __init__(self, pool: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 2, 3, padding=1, stride=2 // pool, padding_mode="reflect")
        self.two, self.pool = nn.Conv2d(3, 4, 1), pool

    def forward(self, y: Tensor) -> Tensor:
        first = F.avg_pool2d(self.one(y), self.pool)
        return torch.cat([first, F.avg_pool2d(self.two(y), 2), F.avg_pool2d(y, 2)], 1)

    def attach(self, layer: norms.CBN) -> None:
        layer.attach(self.one, slice(0, 2), pooled=self.pool > 1)
        layer.attach(self.two, slice(2, 6), pooled=True)


class Flat(nn.Module):
    """A convolution whose output reaches the layer with its axes rearranged."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Linear(3, 4) if kind in ("rows", "turned") else nn.Conv2d(3, 4, 3)

    def forward(self, y: Tensor) -> Tensor:
        if self.kind == "flattened":
            return self.conv(y).flatten(2)
        if self.kind == "mean":
            return self.conv(y).mean((2, 3))
        x = self.conv(y.flatten(2).transpose(1, 2))  # (N, L, C)
        return x.flatten(0, 1) if self.kind == "rows" else x.transpose(1, 2)

    def attach(self, layer: norms.CBN) -> None:
        layer.attach(self.conv, None, self.kind == "mean")


NETS: dict[str, Callable[[], nn.Module]] = {
    "strided": lambda: Branches(1),
    "pooled": lambda: Branches(2),
    **{k: lambda k=k: Flat(k) for k in ("flattened", "mean", "rows", "turned")},
}


def expected(net: nn.Module, layer: norms.CBN, history: list[Any], y: Tensor) -> Tensor:
    """Output by the definition: Taylor's first order along all of a net's parameters, by jvp."""
    now = {n: p.detach().clone() for n, p in net.named_parameters()}
    x = net(y).detach()
    found = [statistics(x)]
    for old_y, old in history[::-1][: layer.window - 1]:

        def functional(parameters: dict[str, Tensor], old_y: Tensor = old_y) -> Any:
            return statistics(torch.func.functional_call(net, parameters, (old_y,)))

        jacobians = torch.func.jacrev(functional)(old)
        change = (
            sum(j[n].flatten(1) @ (now[n] - old[n]).flatten() for n in now) for j in jacobians
        )
        found.append(tuple(v + c for v, c in zip(functional(old), change, strict=True)))
    history.append((y, now))
    mu, nu = (torch.stack(v) for v in zip(*found, strict=True))
    covered = torch.arange(layer.channels) < sum(len(s.conv.weight) for s in layer.sources)
    center = torch.where(covered, mu.mean(0), mu[0])
    square = torch.where(covered, torch.maximum(nu, mu**2).mean(0), nu[0])
    return (x - broadcast(center, x)) / broadcast((square - center**2 + 1e-5).sqrt(), x)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_channels_follow_their_convolutions(name: str, order: int) -> None:
    net = NETS[name]().double()
    x = net(images(0)[..., :4, :])
    layer = norms.CBN(x.shape[1], window=3, order=order, affine=False).double()
    net.attach(layer)
    history: list[Any] = []
    for step in range(6):
        move(net, step)
        y = images(step)[..., :4, :]
        with norms.step(layer):
            out = layer(net(y))
        if order == 1:
            close(out.detach(), expected(net, layer, history, y), 1e-10)
        else:  # exact where all past inputs go through the present weights
            history.append(y)
            joined = torch.stack([torch.stack(statistics(net(v))) for v in history[-3:]]).mean(0)
            fed = slice(0, sum(len(s.conv.weight) for s in layer.sources))
            z = net(y) - broadcast(joined[0], out)
            z = z / broadcast((joined[1] - joined[0] ** 2 + 1e-5).sqrt(), out)
            close(out[:, fed].detach(), z[:, fed].detach(), 1e-10)
        assert layer.count(0) == min(step + 1, 2)


def test_inputs_are_released_and_nothing_is_kept_where_none_is_wanted() -> None:
    conv, layer = pair(burn_in=1)
    (source,) = layer.sources
    conv(images(0))
    assert not source.records  # burn-in
    with norms.step(layer):
        layer(conv(images(0)))
    with torch.no_grad(), norms.step(layer):
        y = images(1)
        kept = weakref.ref(y)
        x = conv(y)
        assert len(source.records) == 1
        layer(x)
        del x, y
        assert kept() is None
        conv(images(2))  # its output goes nowhere
        assert len(source.records) == 1
    assert not source.records
    layer.eval()(conv(images(3)))
    assert not source.records


def test_a_replaced_layer_is_forgotten() -> None:
    conv, layer = pair()
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    conv(images(0))
    conv, layer = pair()
    layer.detach()
    assert not conv._forward_hooks
    assert set(layer.state_dict()) == set(norms.CBN(4).state_dict())


def test_what_is_not_the_convolutions_output_has_a_window_of_one() -> None:
    for change in (lambda x: x * 1, lambda x: x.add_(1)):
        conv, layer = pair()
        plain = norms.BatchNorm(4, affine=False).double()
        layer.weight = layer.bias = None
        for step in range(3):
            with norms.step(layer):
                x = change(conv(images(step)).detach())
                close(layer(x), plain(x))
        assert layer.count(0) == 0


def test_calls_out_of_order_find_their_inputs() -> None:
    """Two towers run before their norms do: each call gets the input of its own output."""
    conv, layer = pair()
    other, alone = copy.deepcopy((conv, layer))
    with norms.step(layer):
        first, second = conv(images(0)), conv(images(1))
        layer(first), layer(second)
    for i in range(2):
        with norms.step(alone):
            alone(other(images(i)))
    for name in ("patch0", "slope0", "base"):
        one, two = (s._buffers[f"window_{name}"] for s in (layer, alone))
        assert torch.equal(one[:, 0], two[0])


def test_attachments_that_make_no_sense_are_refused() -> None:
    layer = norms.CBN(6)
    with pytest.raises(TypeError, match="ConvTranspose2d"):
        layer.attach(nn.ConvTranspose2d(6, 6, 3))  # whose weight has its axes the other way round
    layer.attach(nn.Conv2d(3, 4, 1), slice(0, 4))
    for width, channels in ((6, None), (3, slice(3, 6)), (3, slice(4, 6))):
        with pytest.raises(ValueError, match="cannot feed"):
            layer.attach(nn.Conv2d(3, width, 1), channels)
    layer.attach(layer.sources[0].conv, slice(0, 4))  # once more: nothing new
    layer.attach(nn.Conv2d(3, 2, 1), slice(4, 6))
    assert len(layer.sources) == 2


def test_a_convolution_of_its_own_making_leaves_window_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    layer = norms.CBN(4, window=3).double()
    layer.attach(Standardized(3, 4, 1).double())
    assert not layer.sources
    assert "window of 1" in caplog.text
    plain = norms.BatchNorm(4).double()
    for step in range(3):
        x = draw(4, 4, 3, seed=step)
        close(layer(x).detach(), plain(x).detach())

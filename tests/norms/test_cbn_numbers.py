"""CBN's numbers where they are hard: precisions, dead channels, offsets; and its refusals."""

import pytest
import torch
from torch import Tensor

from normrepro import norms
from tests.norms.cbn_pair import images, move, pair
from tests.oracles.checks import close


def run(dtype: torch.dtype, autocast: torch.dtype | None = None) -> tuple[Tensor, norms.CBN]:
    conv, layer = pair()
    conv, layer = conv.to(dtype), layer.float()
    for step in range(4):
        move(conv, step, 0.01)
        on = autocast is not None
        with norms.step(layer), torch.autocast("cpu", autocast, enabled=on):
            out = layer(conv(images(step).to(dtype)))
        out.float().square().sum().backward()
    return out, layer


@pytest.mark.parametrize(
    ("dtype", "autocast", "slack"),
    [
        (torch.float32, None, 1e-5),
        (torch.bfloat16, None, 0.05),
        (torch.float16, None, 0.01),
        (torch.float32, torch.bfloat16, 0.05),
    ],
)
def test_half_precision_keeps_float32_statistics(
    dtype: torch.dtype, autocast: torch.dtype | None, slack: float
) -> None:
    exact, _ = run(torch.float64)
    found, layer = run(dtype, autocast)
    assert found.dtype == (autocast or dtype)
    assert {b.dtype for b in layer.buffers()} == {torch.float32, torch.int64}
    close(found.detach().double(), exact.detach().double(), slack)
    assert layer.count(0) == 2


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_dead_channel_gives_no_nan(variant: str) -> None:
    conv, layer = pair(variant=variant)
    with torch.no_grad():
        conv.weight[1] = 0
    for step in range(4):
        with norms.step(layer):
            y = layer(conv(images(step)))
            y.square().sum().backward()
        assert y.isfinite().all()
        assert all(p.grad.isfinite().all() for p in (*conv.parameters(), *layer.parameters()))


def test_a_large_offset_does_no_harm() -> None:
    """Mean 1e4 and standard deviation 1 in float32, where E x^2 - mu^2 would be noise."""
    results = []
    for dtype in (torch.float64, torch.float32):
        conv, layer = pair()
        with torch.no_grad():
            conv.bias += 1e4
        conv, layer = conv.to(dtype), layer.to(dtype)
        for step in range(4):
            move(conv, step, 0.01)
            with norms.step(layer):
                out = layer(conv(images(step).to(dtype)))
        results.append(out.detach().double())
    close(results[1], results[0], 5e-3)


def test_an_entry_that_is_not_finite_does_not_count() -> None:
    """A step that overflowed, and that nobody skipped, leaves the later ones as without it."""
    (conv, layer), (other, calm) = pair(), pair()
    for step in range(4):
        move(conv, step), move(other, step)
        with norms.step(layer):
            found = layer(conv(images(step) * (float("inf") if step == 1 else 1)))
        if step == 1:
            assert not found.isfinite().any()
            continue
        with norms.step(calm):
            expected = calm(other(images(step)))
        if step < 3:  # then the calm one's window is longer by its first entry
            assert torch.equal(found, expected)
    assert found.isfinite().all()
    assert not torch.equal(found, expected)
    assert layer.count(0) == 2


def test_channels_last_gives_the_same() -> None:
    (conv, layer), (other, last) = pair(group=2), pair(group=2)
    other = other.to(memory_format=torch.channels_last)
    for step in range(4):
        move(conv, step), move(other, step)
        with norms.step(layer):
            x = layer(conv(images(step)))
        with norms.step(last):
            y = last(other(images(step).to(memory_format=torch.channels_last)))
        close(y.detach(), x.detach())
        assert y.is_contiguous(memory_format=torch.channels_last)
    close(last.window_slope0, layer.window_slope0)


def test_burn_in_as_a_fraction_of_the_run() -> None:
    conv, layer = pair(burn_in=0.25)
    with pytest.raises(ValueError, match="run_length"):
        layer(conv(images(0)))
    layer.run_length = 12
    counts = []
    for step in range(6):
        with norms.step(layer):
            layer(conv(images(step)))
        counts.append(layer.count(0))
    assert counts == [0, 0, 0, 1, 2, 2]


def test_counters_and_windows_come_from_a_state_dict() -> None:
    conv, layer = pair(burn_in=100)
    state = layer.state_dict()
    layer.load_state_dict(state | {"num_batches_tracked": torch.tensor(100)})
    with norms.step(layer):
        layer(conv(images(0)))
    assert layer.count(0) == 1
    layer.num_batches_tracked.fill_(7)  # and from whoever writes them
    conv(images(0))
    assert not layer.sources[0].records
    other_conv, open_window = pair(window=None)
    open_window.load_state_dict(layer.state_dict())
    with norms.step(open_window):
        open_window(other_conv(images(1)))
    assert open_window.count(0) == 2  # k = 3 as loaded, not the rule's 4
    _, longer = pair(window=5)
    longer.load_state_dict(layer.state_dict())
    with pytest.raises(ValueError, match=r"norm\.layer\.window"):
        longer(images(0)[:, :1].expand(4, 4, 5, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "other"}, "variant"),
        ({"order": 3}, "order"),
        ({"order": 2, "variant": "official"}, "order"),
        ({"window": 0}, "window"),
        ({"burn_in": 1.5}, "burn_in"),
        ({"burn_in": -1}, "burn_in"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        norms.CBN(4, **options)


def test_order_two_needs_one_shape() -> None:
    conv, layer = pair(order=2)
    with norms.step(layer):
        layer(conv(images(0)))
    with pytest.raises(ValueError, match=r"norm\.layer\.order"):
        layer(conv(images(0)[..., :3]))

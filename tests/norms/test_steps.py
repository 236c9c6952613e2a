"""State advances once per `norms.step`, whatever happens inside: where released code breaks."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normrepro import convert, norms

LAYERS: dict[str, Callable[..., norms.Normalizer]] = {
    "bn": norms.BatchNorm,
    "brn": lambda c, **k: norms.BatchRenorm(c, r_max=1.5, d_max=0.5, **k),
    "mabn": lambda c, **k: norms.MABN(c, memory=3, **k),
    "mabn_official": lambda c, **k: norms.MABN(c, memory=3, variant="official", **k),
    "cbn": lambda c, **k: norms.CBN(c, window=3, **k),
    "evalnorm": norms.EvalNorm,
}
each_layer = pytest.mark.parametrize("name", LAYERS)


class Net(nn.Module):
    """Two blocks and a head that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor, keep: Callable[..., Tensor] | None = None) -> Tensor:
        keep = keep or (lambda block, value: block(value))
        x = keep(self.block2, keep(self.block1, x))
        return keep(self.head, x).square().mean() + keep(self.head, x[:, :, ::2, ::2]).mean()


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return convert(Net().double(), LAYERS[name], group=2, example=torch.zeros(2, 3, 6, 6).double())


def images(step: int, n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, 3, 6, 6, generator=generator, dtype=torch.float64)


def train(model: nn.Module, steps: int, keep: Callable | None = None) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        with norms.step(model):
            model(images(step).requires_grad_(), keep).backward()
            optimizer.step()
    return model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def counter(layer: norms.Normalizer) -> int:
    return int(layer.iters if hasattr(layer, "iters") else layer.num_batches_tracked)


@each_layer
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(name: str, reentrant: bool) -> None:
    def keep(block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=reentrant)

    plain, kept = net(name), net(name)
    expected, found = train(plain, 6), train(kept, 6, keep)
    if reentrant:  # adds up the head's two gradients in another order
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-12)
    else:
        same(expected, found)
    assert counter(kept.block1[1]) == 6


@each_layer
def test_recomputed_calls_of_one_shape_find_their_own_windows(name: str) -> None:
    def twice(model: nn.Module, x: Tensor, keep: Callable) -> Tensor:
        first = keep(model.head, x)
        return first.square().mean() + keep(model.head, first.relu()).sin().mean()

    results = []
    for keep in (lambda b, x: b(x), lambda b, x: checkpoint(b, x, use_reentrant=False)):
        model = net(name)
        for step in range(5):
            with norms.step(model):
                x = torch.cat([images(step), images(step + 100)[:, :1]], 1).requires_grad_()
                twice(model, x, keep).backward()
        results.append(
            model.state_dict()
            | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        )
    same(*results)


@each_layer
def test_several_calls_move_the_state_once_by_their_mean(name: str) -> None:
    layer = LAYERS[name](3, group=2).double()
    a, b = images(1), images(2)
    with norms.step(layer):
        (layer(a.requires_grad_()).sin().mean() + layer(b.requires_grad_()).sin().mean()).backward()
    assert counter(layer) == 1
    alone = []
    for x in (a, b):
        other = LAYERS[name](3, group=2).double()
        with norms.step(other):
            other(x)
        alone.append(other.running_std if name == "brn" else other.running_var)
    moved = layer.running_std if name == "brn" else layer.running_var
    torch.testing.assert_close(moved, (alone[0] + alone[1]) / 2, rtol=1e-12, atol=0)
    if name.startswith("mabn"):
        assert layer.psi_window.shape == (2, 3, 3)  # a window per call
        assert layer.psi_count.tolist() == [2, 2]


def test_forward_without_backward_leaves_the_window_of_psi() -> None:
    layer = LAYERS["mabn_official"](3, group=2).double()
    with norms.step(layer):
        layer(images(0).requires_grad_()).sin().sum().backward()
    window, count = layer.psi_window.clone(), layer.psi_count.clone()
    for context in (torch.no_grad(), torch.enable_grad()):
        with norms.step(layer), context:
            layer(images(1))
    assert torch.equal(layer.psi_window, window)
    assert torch.equal(layer.psi_count, count)
    assert counter(layer) == 3


@each_layer
def test_a_skipped_or_failed_step_leaves_no_trace(name: str) -> None:
    model = net(name)
    train(model, 2)
    before = copy.deepcopy(model.state_dict())
    with norms.step(model) as s:
        model(images(9)).mul(float("inf")).backward()
        s.skip()
    same(before, model.state_dict())

    def failing() -> None:
        with norms.step(model):
            model(images(9)).backward()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        failing()
    same(before, model.state_dict())
    train(model, 1)  # and the next step is open


@pytest.mark.parametrize("name", ["mabn", "mabn_official"])
def test_an_overflow_that_nobody_skips_does_not_poison_the_window(name: str) -> None:
    model = net(name)
    with norms.step(model):
        model(images(0)).mul(float("inf")).backward()
    assert all(b.isfinite().all() for n, b in model.named_buffers() if "psi" in n)


@pytest.mark.parametrize("name", ["mabn", "mabn_official"])
def test_psi_is_kept_in_units_of_the_unscaled_loss(name: str) -> None:
    plain, scaled = net(name), net(name)
    for step, scale in enumerate((1.0, 2.0**16, 2.0**10, 2.0**3)):  # powers of two round nothing
        for model, factor in ((plain, 1.0), (scaled, scale)):
            model.zero_grad()
            with norms.step(model, scale=factor):
                (factor * model(images(step))).backward()
        same(plain.state_dict(), scaled.state_dict())
        for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
            assert torch.equal(one.grad * scale, other.grad)


@each_layer
def test_outside_a_step_every_training_forward_moves_the_state(name: str) -> None:
    layer = LAYERS[name](3, group=2).double()
    inside = copy.deepcopy(layer)
    for step in range(4):
        layer(images(step).requires_grad_()).sin().sum().backward()
        with norms.step(inside):
            inside(images(step).requires_grad_()).sin().sum().backward()
    same(layer.state_dict(), inside.state_dict())


@each_layer
def test_copies_and_pickles_go_on_alike(name: str) -> None:
    model = net(name)
    train(model, 3)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    loaded = net(name)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded]
    with norms.step(model) as s:  # a copy made within a step is out of it
        model(images(5))
        others.append(copy.deepcopy(model))
        s.skip()
    expected = train(model, 3)
    for other in others:
        same(expected, train(other, 3))


def test_steps_do_not_nest() -> None:
    model = net("bn")
    with norms.step(model), pytest.raises(RuntimeError, match="open already"), norms.step(model):
        pass


@each_layer
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_trains_to_the_same_state(name: str) -> None:
    plain, model = net(name), net(name)
    expected = train(plain, 4)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        with norms.step(model):
            compiled(images(step).requires_grad_()).backward()
            optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12)
    compiled.eval()
    torch.testing.assert_close(compiled(images(7)), plain.eval()(images(7)))

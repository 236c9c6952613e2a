"""What every normalizer of configs/norm keeps to: a new YAML is tested here without being named."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from normrepro import norms, recalibrate
from tests.norms.registry import (
    CHOICES,
    SHAPES,
    C,
    block,
    build,
    choice,
    draw,
    each_layer,
    specs,
    train,
    tried,
)


@pytest.mark.parametrize("name", CHOICES)
def test_the_file_says_what_the_layer_is(name: str) -> None:
    config = choice(name)
    assert {"name", "version", "across_batch", "layer"} <= config.keys()
    assert config["name"] == name
    layers = [instantiate(spec)(C, group=2, replicas=2) for spec in specs(name).values()]
    assert all(isinstance(layer, norms.Normalizer) for layer in layers)
    assert config["across_batch"] == any(layer.across_batch for layer in layers)


@each_layer
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_type_and_memory_format_stay(name: str, shape: tuple[int, ...]) -> None:
    forms = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(len(shape), [])
    for form in [torch.contiguous_format, *forms]:
        layer = build(name).double()
        for mode in (True, False):
            x = draw(*shape).to(memory_format=form).requires_grad_()
            y = tried(layer.train(mode), x, "value")
            if y is None:  # one value per channel
                assert len(shape) == 2
                return
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            assert y.is_contiguous(memory_format=form)
            y.sum().backward()
            assert x.grad.shape == x.shape
            assert y.isfinite().all()
            assert x.grad.isfinite().all()


@each_layer
def test_every_parameter_learns(name: str) -> None:
    model = block(name)
    train(model, range(3))
    for key, parameter in model[1].named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@each_layer
def test_evaluation_is_each_images_own(name: str) -> None:
    model = block(name)
    train(model, range(3))
    x, state = draw(8, 3, 4, 4), copy.deepcopy(model.state_dict())
    model.eval()
    y = model(x)
    for i in (0, 5):
        torch.testing.assert_close(model(x[i : i + 1])[0], y[i], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@each_layer
def test_training_looks_across_the_batch_as_it_says(name: str) -> None:
    """In its outputs or in its gradients: MABN's forward may see its running average only."""
    found, x = [], draw(8, C, 4, 4)
    for rest in (x[1:], 2 * x[1:] + 1):
        layer, batch = build(name).double(), torch.cat([x[:1], rest]).requires_grad_()
        y = layer(batch)
        y.backward(draw(*y.shape, seed=1))
        found.append(torch.stack([y[0], batch.grad[0]]))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-9) != layer.across_batch


@each_layer
def test_a_saved_state_goes_on_bit_by_bit(name: str) -> None:
    model = block(name)
    train(model, range(3))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = block(name)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one, other in zip(train(model, range(3, 6)), train(again, range(3, 6)), strict=True):
        assert torch.equal(one, other)


@each_layer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_bit_by_bit_and_apart(name: str, copied: Any) -> None:
    model = block(name)
    train(model, range(3))
    again = copied(model)
    state = copy.deepcopy(model.state_dict())
    found = train(again, range(3, 6))
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    for one, other in zip(train(model, range(3, 6)), found, strict=True):
        assert torch.equal(one, other)


@each_layer
def test_recalibration_moves_running_statistics_only(name: str) -> None:
    model = block(name)
    train(model, range(3))
    before = copy.deepcopy(model.state_dict())
    batches = [draw(8, 3, 4, 4, seed=i) for i in range(4)]
    if any(key.rpartition(".")[2].startswith("running_") for key in before):
        recalibrate(model, batches)
    else:
        with pytest.raises(ValueError, match="nothing to recalibrate"):
            recalibrate(model, batches)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert all(key.rpartition(".")[2].startswith("running_") for key in moved)
    assert bool(moved) == (model[1].across_batch)

"""What every normalizer of configs/norm does with difficult inputs."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from normrepro import norms
from tests.norms.registry import (
    LAYERS,
    C,
    build,
    draw,
    each_layer,
    train,
    tried,
)


@each_layer
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_dead_channels_do_no_harm(name: str, value: float) -> None:
    """All channels of one group of channels are constant, in all images."""
    layer = build(name)
    for i in range(3):
        x = draw(8, C, 4, 4, seed=i, dtype=torch.float32)
        x[:, : C // 2] = value
        x.requires_grad_()
        with norms.step(layer):
            y = layer(x)
            (y * draw(*y.shape, seed=9, dtype=torch.float32)).sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert all(b.isfinite().all() for b in layer.buffers())
    assert layer.eval()(x).isfinite().all()


@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_have_float32_statistics(name: str, dtype: torch.dtype) -> None:
    """Squares of the inputs would overflow in float16."""
    layer, exact = build(name), build(name)
    for i in range(3):
        x = (300 * draw(8, C, 4, 4, seed=i) + 100).to(dtype).requires_grad_()
        with norms.step(layer):
            y = layer(x)
            y.backward(draw(*y.shape, seed=9, dtype=dtype))
        with norms.step(exact):
            exact(x.detach().float().requires_grad_()).backward(draw(*y.shape, seed=9).float())
        assert y.dtype == x.grad.dtype == dtype
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
    assert layer.eval()(x).dtype == dtype
    for key, value in layer.state_dict().items():
        assert value.dtype not in (torch.float16, torch.bfloat16), key
        torch.testing.assert_close(value, exact.state_dict()[key], rtol=3e-2, atol=3e-2, msg=key)


@each_layer
def test_one_image_is_enough_where_it_has_several_values(name: str) -> None:
    layer = build(name, group=None, replicas=1).double()
    x = draw(1, C, 4, 4).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert layer.eval()(x).isfinite().all()


@each_layer
@pytest.mark.parametrize("group", [1, 2])
def test_maps_of_one_pixel(name: str, group: int) -> None:
    layer = build(name, group=group).double()
    x = draw(8, C, 1, 1).requires_grad_()
    y = tried(layer, x, "value")
    if y is None:  # one value per channel and group says nothing
        assert group == 1 or not layer.across_batch
        return
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert layer.eval()(x.detach()).isfinite().all()


@each_layer
def test_no_images(name: str) -> None:
    """A clear error in training, or nothing from nothing."""
    layer, x = build(name), torch.zeros(0, C, 4, 4)
    y = tried(layer, x, "no values")
    assert y is None or (y.shape == x.shape and not layer.across_batch)
    assert layer.eval()(x).shape == x.shape


@each_layer
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.repeat_interleave(2, 1)[:, ::2],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], 4)[..., 0],
        lambda x: x[:, :, :1, :1].expand_as(x),
    ],
    ids=["channels", "transposed", "strided", "expanded"],
)
def test_inputs_in_any_order_of_memory(name: str, view: Any) -> None:
    x = view(draw(8, C, 4, 4))
    assert not x.is_contiguous()
    found = []
    for value in (x, x.contiguous()):
        layer, value = build(name).double(), value.detach().requires_grad_()
        y = layer(value)
        (y * draw(*y.shape, seed=3)).sum().backward()
        found.append([y, value.grad, *layer.state_dict().values(), layer.eval()(value)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@each_layer
def test_a_large_offset(name: str) -> None:
    """Mean 1e4, standard deviation 1, in float32."""
    layer, exact = build(name), build(name).double()
    for i in range(3):
        x = (draw(8, C, 4, 4, seed=i) + 1e4).float()
        with norms.step(layer), norms.step(exact):
            one, other = layer(x), exact(x.double())
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-2)
    one, other = layer.eval()(x), exact.eval()(x.double())
    torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-2)


@each_layer
def test_linear_is_said_of_the_linear(name: str) -> None:
    """f((u + v) / 2) = (f(u) + f(v)) / 2 at evaluation, for layers that fold and for no others."""
    layer = build(name).double()
    train(layer, range(3), (8, C, 4, 4))
    layer.eval()
    u, v = draw(8, C, 4, 4, seed=1), draw(8, C, 4, 4, seed=2)
    defect = (layer((u + v) / 2) - (layer(u) + layer(v)) / 2).abs().max()
    assert layer.linear == bool(defect < 1e-9)
    if layer.linear:
        scale, shift = (p.view(1, -1, 1, 1) for p in layer.inference_affine())
        torch.testing.assert_close(layer(u), scale * u + shift, rtol=1e-10, atol=1e-10)


@each_layer
def test_wrong_inputs_are_refused(name: str) -> None:
    layer = build(name)
    for shape in ((C,), (8, C + 1, 4, 4)):
        with pytest.raises(ValueError, match=rf"expected \(N, {C}, \*\)"):
            layer(torch.zeros(*shape))
    for mistake in ({"channels": 0}, {"replicas": 0}, {"group": 0}):
        given = {"channels": C, "group": 2, "replicas": 2} | mistake
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            instantiate(LAYERS[name])(given.pop("channels"), **given)
    if layer.across_batch:
        with pytest.raises(ValueError, match=r"batch\.norm"):
            layer(torch.zeros(6, C, 4, 4))

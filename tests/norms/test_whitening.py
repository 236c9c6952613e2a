"""Group whitening beside the iteration written out, and what whitening means."""

import pytest
import torch
from torch import Tensor

from normrepro import norms
from tests.norms.cases import LAYOUTS, Layout
from tests.norms.test_compared import change
from tests.norms.test_exact import TOLERANCE, batch
from tests.oracles.checks import close, draw


def reference(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float, steps: int
) -> Tensor:
    """Image by image, entry by entry of the covariance."""
    out = []
    for image in x:
        rows = image.reshape(groups, -1)
        rows = torch.stack([row - row.sum() / len(row) for row in rows])
        sigma = torch.stack([torch.stack([(a * b).mean() for a in rows]) for b in rows])
        sigma = sigma + eps * torch.eye(groups, dtype=x.dtype)
        trace = sum(sigma[i, i] for i in range(groups))
        root = torch.eye(groups, dtype=x.dtype)
        for _ in range(steps):
            root = (3 * root - torch.linalg.multi_dot([root, root, root, sigma / trace])) / 2
        wide = (-1,) + (1,) * (image.dim() - 1)
        y = (root / trace.sqrt() @ rows).reshape(image.shape)
        out.append(gamma.view(wide) * y + beta.view(wide))
    return torch.stack(out)


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_whitening_is_its_reference(layout: Layout, variant: str) -> None:
    c = layout.shape[1]
    groups = c if len(layout.shape) > 3 else 1 if c == 3 else 2
    layer = norms.GroupWhitening(c, groups=groups, variant=variant).double()
    eps = 1e-5 if variant == "paper" else 0.0
    for step in range(4):
        parameters = change(layer, step)
        x, gz = batch(layout, step)
        one, two = (x.clone().requires_grad_() for _ in range(2))
        y, wanted = layer(one), reference(two, *parameters, groups, eps, 5)
        assert y.stride() == x.stride()
        close(y.detach(), wanted.detach(), TOLERANCE)
        got = torch.autograd.grad(y, (one, *layer.parameters()), gz)
        for g, w in zip(got, torch.autograd.grad(wanted, (two, *parameters), gz), strict=True):
            close(g, w, TOLERANCE)


def test_one_group_is_layer_norm() -> None:
    x = draw(3, 4, 5)
    for variant, eps in (("official", 0.0), ("paper", 1e-5)):
        layer = norms.GroupWhitening(4, groups=1, variant=variant).double()
        close(layer(x).detach(), norms.LayerNorm(4, eps=eps).double()(x).detach())


def test_many_iterations_whiten() -> None:
    layer = norms.GroupWhitening(8, groups=4, iterations=25, variant="official").double()
    y = layer(draw(3, 8, 50)).detach().reshape(3, 4, -1)
    close(y @ y.mT / y.shape[2], torch.eye(4).double().expand(3, 4, 4), 1e-9)
    close(y.mean(2), torch.zeros(3, 4).double())


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_constant_groups_and_single_values_are_harmless(variant: str, dtype: torch.dtype) -> None:
    """Where the released code gives NaN: all groups constant, and 1x1 maps with G = C."""
    layer = norms.GroupWhitening(4, variant=variant)
    one_dead = draw(2, 4, 3, 3).to(dtype)
    one_dead[:, 1] = 2
    for x in (torch.full((2, 4, 3, 3), 7.0, dtype=dtype), draw(2, 4, 1, 1).to(dtype), one_dead):
        x.requires_grad_()
        y = layer(x)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
        if x is not one_dead:
            assert not y.any()
    assert layer(one_dead[:0]).shape == (0, 4, 3, 3)


@pytest.mark.parametrize(
    "options", [{"groups": 3}, {"groups": 0}, {"iterations": -1}, {"variant": "svd"}], ids=str
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"divide|must be"):
        norms.GroupWhitening(8, **options)

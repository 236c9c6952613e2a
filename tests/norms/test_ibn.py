"""IBN beside the references of its two parts; IBN-a's places in ResNet-50."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from normrepro import convert, norms
from tests import oracles
from tests.norms.cases import STEPS, Layout
from tests.norms.test_compared import change, each_layout, shape
from tests.norms.test_exact import TOLERANCE, batch, run
from tests.oracles.checks import close, draw


def near(actual: Tensor, expected: Tensor) -> None:
    """Close, in units of 1 where all is smaller, as the gradient of pairs of single values."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scale)


@each_layout
@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.8])
def test_ibn_is_instance_norm_beside_batch_norm(layout: Layout, ratio: float) -> None:
    c = layout.shape[1]
    half = int(c * ratio)
    if not half:
        with pytest.raises(ValueError, match="without any"):
            norms.IBN(c, ratio=ratio)
        return
    layer = norms.IBN(c, **shape(layout), ratio=ratio).double()
    parts = (oracles.InstanceNorm(half), oracles.BatchNorm(c - half, **shape(layout)))
    for step in range(STEPS):
        gamma, beta = change(layer, step)
        x, gz = batch(layout, step)
        with norms.step(layer):
            got = run(layer, x, gz)
        wanted = []
        for oracle, some in zip(parts, (slice(half), slice(half, None)), strict=True):
            oracle.gamma, oracle.beta = gamma[some].detach(), beta[some].detach()
            wanted.append((oracle.forward(x[:, some]), *oracle.backward(gz[:, some])))
            oracle.commit()
        for g, one, two, dim in zip(got, *wanted, (1, 1, 0, 0), strict=True):
            near(g, torch.cat([one, two], dim))
        for name, value in parts[1].buffers().items():
            close(getattr(layer.bn, name), value, TOLERANCE)
    layer.eval()
    y = torch.cat(
        [o.evaluate(v) for o, v in zip(parts, x.split([half, c - half], 1), strict=True)], 1
    )
    close(layer(x).detach(), y, TOLERANCE)


def test_ibn_a_has_the_parameters_and_places_of_the_released_net() -> None:
    with torch.device("meta"):
        net = torchvision.models.resnet50(weights=None)
    net = convert(net, "ibn_a", group=32)
    assert sum(p.numel() for p in net.parameters()) == 25_557_032
    found = [n for n, kind in net.conversion.replaced.items() if kind == "IBN"]
    blocks = zip((1, 2, 3), (3, 4, 6), strict=True)
    assert found == [f"layer{i}.{j}.bn1" for i, n in blocks for j in range(n)]
    with torch.device("meta"):
        net = torchvision.models.resnet50(weights=None)
    kinds = convert(net, "ibn_b", group=32).conversion.replaced
    assert [n for n, kind in kinds.items() if kind != "BatchNorm"] == ["bn1"]
    assert net.bn1.affine


def test_ibn_keeps_the_statistics_of_its_batch_norm() -> None:
    old = nn.BatchNorm2d(6)
    x = draw(4, 6, 3, 3).float()
    old(x)
    layer = convert(nn.Sequential(old), norms.IBN)[0].eval()
    y = layer(x)
    close(y[:, 3:].detach(), old.eval()(x)[:, 3:].detach(), 1e-6)
    close(y[:, :3].detach(), F.instance_norm(x)[:, :3], 1e-6)

"""EvalNorm's exact claims: eq. 3 to 6, the ends of the scale, independence of images."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from normrepro import norms
from tests import oracles
from tests.norms.cases import LAYOUTS, Layout
from tests.norms.test_evalnorm import IDS, build, nets
from tests.norms.test_exact import batch
from tests.oracles.checks import close, draw


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def image_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.flatten(2)
    return rows.mean(2), rows.var(2, correction=0)


def test_a_batch_is_its_image_and_the_rest() -> None:
    """E-1, eq. 3 and 4: alpha = beta = 1/B and the statistics of the others give the batch's."""
    for size in (2, 3, 7):
        x = draw(size, 4, 5)
        rest = image_moments(x[1:].transpose(0, 1).reshape(1, 4, -1))
        layer = fixed(1 / size, *(m[0] for m in rest))
        close(layer(x[:1]), norms.BatchNorm(4).double()(x)[:1])


def fixed(value: float, mean: Tensor, var: Tensor, beta: float | None = None) -> nn.Module:
    """A layer in evaluation mode with these statistics."""
    beta = value if beta is None else beta
    layer = norms.EvalNorm(len(mean), method="fixed", alpha=value, beta=beta).double().eval()
    layer.adopt(mean, var)
    return layer


@pytest.mark.parametrize("size", [2, 3, 4])
def test_one_over_b_gives_the_exact_conditional_moments(size: int) -> None:
    """E-4: over all batches that hold an image, E mu_B and E var_B are eq. 5 and 6 at 1/B."""
    population = draw(5, 2, 3)
    batches = torch.cartesian_prod(*[torch.arange(5)] * size).view(-1, size)
    joined = population[batches].transpose(1, 2).flatten(2)  # (batches, C, B S)
    mean, var = joined.mean(2), joined.var(2, correction=0)
    x, own = population[0], batches[:, 0] == 0
    mu, spread = image_moments(x[None])
    layer = fixed(1 / size, mean.mean(0), var.mean(0))
    gap = mu[0] - layer.running_mean
    a = 1 / size
    close(a * mu[0] + (1 - a) * layer.running_mean, mean[own].mean(0))
    wanted = var[own].mean(0)
    close(a * spread[0] + (1 - a) * layer.running_var + a * (1 - a) * gap.square(), wanted)
    center, width = (v[:, None] for v in (mean[own].mean(0), wanted))
    close(layer(x[None])[0], (x - center) / (width + 1e-5).sqrt())


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_the_ends_of_the_scale(layout: Layout) -> None:
    """E-2, E-3: (0, 0) is EMA evaluation, (1, 1) instance norm."""
    x, _ = batch(layout, 1)
    c = layout.shape[1]
    mean, var = draw(c, seed=5), draw(c, seed=6).square() + 0.1
    plain = norms.BatchNorm(c).double().eval()
    plain.adopt(mean, var)
    close(fixed(0.0, mean, var)(x), plain(x))
    close(fixed(1.0, mean, var)(x), oracles.InstanceNorm(c).forward(x))
    layer = fixed(0.3, mean, var)
    with norms.evaluation_rule(layer, "ema"):
        assert torch.equal(layer(x), plain(x))
    assert not torch.allclose(layer(x), plain(x))


def test_evaluation_by_rules() -> None:
    """One training, several metrics; nothing stays."""
    net = nets(norms.EvalNorm, lr=1.0).double()
    x = draw(8, 3, 6, 6)
    with norms.step(net):
        net(x)
    net.eval()
    own, layer = net(x), net[1]
    for rule, value in {"ema": 0.0, "1/B": 0.5, "1/B^2": 0.25}.items():
        other = fixed(value, layer.running_mean, layer.running_var)
        with norms.evaluation_rule(net, rule):
            close(net(x), torch.relu(other(net[0](x))))
        assert torch.equal(net(x), own)
    with pytest.raises(ValueError, match="must be one of"), norms.evaluation_rule(net, "1/N"):
        pass
    free = norms.EvalNorm(4).eval()
    with norms.evaluation_rule(free, "1/B"), pytest.raises(ValueError, match="set group="):
        free(draw(2, 4, 3))


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_images_do_not_see_each_other(layout: Layout) -> None:
    """E-9: order and company of the images are without effect."""
    layer = build(layout)
    with norms.step(layer):
        layer(batch(layout, 0)[0])
    layer.eval()
    x = batch(layout, 1)[0]
    whole, order = layer(x), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    close(layer(x[order]), whole[order])
    close(torch.cat([layer(image[None]) for image in x]), whole)


def test_rule_tends_to_ema_as_one_over_b() -> None:
    """E-10."""
    x, mean, var = draw(6, 4, 9), draw(4, seed=1), draw(4, seed=2).square() + 0.5
    with torch.no_grad():
        ema = fixed(0.0, mean, var)(x)
        sizes = torch.tensor([64.0, 256.0, 1024.0])
        gaps = torch.tensor([float((fixed(1 / b, mean, var)(x) - ema).abs().max()) for b in sizes])
    slopes = gaps.log().diff() / sizes.log().diff()
    assert ((slopes + 1).abs() < 0.1).all()


def test_evaluation_is_not_affine() -> None:
    """E-11: superposition fails, but for EMA evaluation."""
    u, v = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    mean, var = draw(4, seed=2), torch.ones(4).double()

    def defect(value: float) -> float:
        f = fixed(value, mean, var)
        return float((f((u + v) / 2) - f(u) / 2 - f(v) / 2).abs().max())

    assert defect(0.5) > 1e-2
    assert defect(0.0) < 1e-12
    assert not norms.EvalNorm.linear


def test_pairs_without_space_cannot_be_matched() -> None:
    """E-14: train-mode outputs are +-1, so the loss stays above 0 for every alpha and beta."""
    layer = norms.EvalNorm(4, group=2, eps=0.0).double()
    targets = layer(draw(64, 4))
    close(targets.abs(), torch.ones_like(targets))
    x = draw(64, 4, seed=1)
    targets = layer(x)
    for a in torch.linspace(0, 0.95, 20):
        for b in torch.linspace(0, 0.95, 20):
            f = fixed(float(a), layer.running_mean, layer.running_var, float(b))
            assert (f(x) - targets).abs().mean() > 0.1


def test_single_images_are_instance_norm_from_the_start() -> None:
    """B = 1: alpha = beta = 1 is exact, and stays."""
    layer = norms.EvalNorm(4, group=1).double()
    x = draw(6, 4, 5)
    y = layer(x)
    assert layer.alpha == layer.beta == 1
    close(layer.eval()(x), y)


@pytest.mark.parametrize("size", [2, 4])
def test_fitted_layer_is_nearer_to_training_than_the_rules(size: int) -> None:
    """E-5, on the data that it was fitted to."""
    x = draw(256, 4, 6) + 2 * draw(256, 4, 1, seed=1)
    layer = norms.EvalNorm(4, group=size, momentum=1.0).double()
    with norms.step(layer):
        targets = layer(x)
    norms.fit_evalnorm(layer, [x], epochs=200, lr=0.5)
    layer.eval()
    losses = {}
    for rule in (None, "ema", "1/B", "1/B^2"):
        with norms.evaluation_rule(layer, rule), torch.no_grad():
            losses[rule] = float((layer(x) - targets).abs().mean())
    assert losses[None] == min(losses.values())
    assert losses[None] < 0.9 * losses["ema"]


def test_renormalization_of_the_experiments_stays_within_its_limits() -> None:
    """E-18: r_max 2, d_max 1; group means of the output are d, deviations r."""
    layer = norms.BatchRenorm(4, group=4, r_max=2.0, d_max=1.0, eps=0.0).double()
    seen = []
    for step in range(40):
        x = draw(8, 4, 5, seed=step) * 2.0 ** (step % 7 - 3) + step % 5
        seen.append(layer(x).unflatten(0, (2, 4)).transpose(1, 2).flatten(2))
    d, r = torch.cat(seen).mean(2), torch.cat(seen).std(2, correction=0)
    close(d.abs().max(), torch.tensor(1.0).double())
    close(r.max(), torch.tensor(2.0).double())
    close(r.min(), torch.tensor(0.5).double())


def test_alpha_and_beta_fall_as_batches_grow() -> None:
    """E-7, of one layer and independent images."""
    x, found = draw(256, 4, 6) + 2 * draw(256, 4, 1, seed=1), []
    for size in (2, 4, 8, 32):
        layer = norms.EvalNorm(4, group=size, momentum=1.0).double()
        layer(x)
        norms.fit_evalnorm(layer, [x], epochs=100, lr=0.5)
        found.append(torch.stack([layer.alpha, layer.beta]))
    assert (torch.stack(found).diff(dim=0) < 0).all()
    assert (found[-1] > 0).all()

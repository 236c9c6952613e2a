"""The degenerate cases that tie the layers to each other, each to 1e-12 (float64)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normrepro import norms

C = 6


def images(n: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, C, 4, 3, generator=generator, dtype=torch.float64) * 2 + 1


def gradients(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output, and the input gradient of a loss that is not linear in it."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (gx,) = torch.autograd.grad((y.sin() * torch.linspace(-1, 2, y.numel()).view_as(y)).sum(), x)
    return y.detach(), gx


def same(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], x: Tensor | None = None
) -> None:
    for found, expected in zip(
        gradients(one, images() if x is None else x),
        gradients(other, images() if x is None else x),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def modified(x: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + eps) over the whole batch, with autograd's own gradient (eq. 15, 16)."""
    return x / (x.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()


def vanilla(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def test_one_group_is_bn() -> None:
    same(norms.BatchNorm(C).double(), vanilla)
    same(norms.BatchNorm(C, group=8).double(), vanilla)


def test_groups_of_one_image_are_instance_norm() -> None:
    same(norms.BatchNorm(C, group=1).double(), norms.InstanceNorm(C).double())
    same(norms.BatchNorm(C, group=1).double(), lambda x: F.instance_norm(x))


def test_groups_are_bn_of_each_group() -> None:
    same(
        norms.BatchNorm(C, group=2, replicas=2).double(),
        lambda x: torch.cat([vanilla(part) for part in x.split(2)]),
    )


def test_gn_of_one_channel_is_in_and_of_all_channels_ln() -> None:
    same(norms.GroupNorm(C, groups=C).double(), norms.InstanceNorm(C).double())
    same(norms.GroupNorm(C, groups=1).double(), norms.LayerNorm(C).double())
    whole = nn.LayerNorm((C, 4, 3), elementwise_affine=False).double()
    same(norms.LayerNorm(C).double(), whole)


def test_brn_without_play_is_bn() -> None:
    layer = norms.BatchRenorm(C, group=4, r_max=1.0, d_max=0.0).double()
    layer.running_std.fill_(3.0)
    layer.running_mean.fill_(-2.0)
    same(layer, norms.BatchNorm(C, group=4).double())


def test_brn_without_limits_is_ema_bn_forward_and_uses_its_own_backward_statistics() -> None:
    big = 1e12
    layer = norms.BatchRenorm(C, group=4, r_max=big, d_max=big, momentum=0.0).double()
    layer.running_std.uniform_(0.5, 2.0)
    layer.running_mean.uniform_(-1.0, 1.0)
    x = images()
    shape = (1, C, 1, 1)
    std, mean = layer.running_std.view(shape), layer.running_mean.view(shape)
    torch.testing.assert_close(layer(x), (x - mean) / std, rtol=1e-12, atol=1e-12)
    # M-14: dX = (1/sigma^)(dY - g - Y Psi) with g, Psi of the group and the EMA's scale
    y, gx = gradients(layer, x)
    gy = torch.autograd.functional.vjp(
        lambda v: (v.sin() * torch.linspace(-1, 2, v.numel()).view_as(v)).sum(), y
    )[1]
    for rows in (slice(0, 4), slice(4, 8)):
        z = vanilla_z(x[rows])
        g = gy[rows].mean(dim=(0, 2, 3), keepdim=True)
        psi = (gy[rows] * z).mean(dim=(0, 2, 3), keepdim=True)
        expected = (gy[rows] - g - z * psi) / std
        torch.testing.assert_close(gx[rows], expected, rtol=1e-10, atol=1e-12)


def vanilla_z(x: Tensor) -> Tensor:
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / (x.var(dim=(0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()


def test_mabn_without_memory_and_renormalization_is_the_modified_form() -> None:
    same(norms.MABN(C, memory=1, clip=1.0).double(), modified)
    same(norms.MABN(C, memory=1, fp="batch").double(), modified)


def test_mabn_without_limits_normalizes_by_the_running_average() -> None:
    layer = norms.MABN(C, group=2, clip=1e12).double()
    layer.running_var.uniform_(0.5, 2.0)
    chi = (layer.running_var + 1e-5).sqrt().view(1, C, 1, 1).clone()
    x = images()
    torch.testing.assert_close(layer(x), x / chi, rtol=1e-12, atol=1e-12)


def test_the_vanilla_structure_with_batch_statistics_is_bn_and_with_emas_in_fp_is_brn() -> None:
    plain = norms.MABN(C, group=2, structure="vanilla", fp="batch", bp="batch").double()
    same(plain, norms.BatchNorm(C, group=2).double())
    ours = norms.MABN(C, group=2, structure="vanilla", bp="batch", momentum=0.1, clip=3.0).double()
    brn = norms.BatchRenorm(C, group=2, r_max=3.0, d_max=3.0, ema="var").double()
    for step in range(5):  # Table 2: experiment 4 is BRN
        same(ours, brn, images(seed=step))


def test_the_modified_form_on_zero_mean_inputs_is_bn_forward() -> None:
    x = images()
    x = x - x.mean(dim=(0, 2, 3), keepdim=True)
    layer = norms.MABN(C, memory=1, fp="batch").double()
    torch.testing.assert_close(layer(x), vanilla(x), rtol=1e-12, atol=1e-12)


def test_gradients_sum_to_zero_as_their_statistics_say() -> None:
    """M-2: BN's input gradient is orthogonal to 1 and to Y, the modified form's only to Y."""
    x, axes = images(), (0, 2, 3)
    _, gx = gradients(norms.BatchNorm(C, eps=0.0).double(), x)
    y = vanilla_z(x)
    assert gx.sum(axes).abs().max() < 1e-12
    assert (gx * y).sum(axes).abs().max() < 1e-11
    _, gx = gradients(norms.MABN(C, memory=1, fp="batch", eps=0.0).double(), x)
    assert (gx * x).sum(axes).abs().max() < 1e-11
    assert gx.sum(axes).abs().max() > 1e-3


def test_a_window_of_groups_of_two_is_the_mean_square_of_all_of_them() -> None:
    """M-12, frozen weights: the SMA of chi^2 over 4 groups of 2 is chi^2 of the 8 images."""
    layer = norms.MABN(C, group=2, memory=4, fp="sma").double()
    x = images()
    y = layer(x)
    whole = x.square().mean(dim=(0, 2, 3))
    last = x[6:] / (whole + 1e-5).sqrt().view(1, C, 1, 1)
    torch.testing.assert_close(y[6:], last, rtol=1e-12, atol=1e-12)


def test_centred_filters_put_out_zero_mean_for_equal_channel_means() -> None:
    """M-17: (W - mean W) 1 = 0, so a constant input gives nothing; unequal means give something."""
    conv = nn.Conv2d(3, C, 3, bias=False).double()
    norms.MABN(C).attach(conv)
    flat = torch.full((2, 3, 5, 5), 7.0, dtype=torch.float64)
    assert conv(flat).abs().max() < 1e-12
    flat[:, 0] = 1.0
    assert conv(flat).abs().max() > 1e-2

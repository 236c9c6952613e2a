"""Augmentation of images: each kind does what it says, at its strength."""

import torch

from normrepro.data.augment import KINDS, PRESETS, augment_epoch
from normrepro.data.base import generator
from normrepro.data.image_transforms import lighting


def test_shift_moves_whole_pixels_without_wrapping():
    images = torch.zeros(500, 1, 8, 8)
    images[:, :, 4, 4] = 1
    moved = KINDS["shift"](images, 2, generator("test"))
    rows, columns = moved.nonzero()[:, 2], moved.nonzero()[:, 3]
    assert moved.sum() == 500
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    corner = torch.zeros(200, 1, 8, 8)
    corner[:, :, 0, 0] = 1
    left = KINDS["shift"](corner, 1, generator("test")).sum(dim=(1, 2, 3))
    assert set(left.tolist()) == {0.0, 1.0}  # pushed out where it moved up or left


def test_rotation_keeps_the_middle_and_turns_by_at_most_the_limit():
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 4:] = 1  # a hand from the middle to the right
    turned = KINDS["rotate"](images, 30.0, generator("test"))
    torch.testing.assert_close(turned[:, 0, 4, 4], torch.ones(200), rtol=0, atol=0.51)
    rows = torch.arange(9.0).view(1, 9)
    column = turned[:, 0, :, 7] + 1e-9  # three pixels right of the middle
    height = (column * rows).sum(1) / column.sum(1) - 4
    limit = 3 * torch.tensor(30.0).deg2rad().tan()
    assert height.abs().max() < limit + 0.3
    assert height.min() < -0.6 * limit
    assert height.max() > 0.6 * limit


def test_cutout_blackens_one_square():
    images = torch.ones(300, 2, 8, 8)
    cut = KINDS["cutout"](images, 3, generator("test"))
    black = (cut == 0).sum(dim=(2, 3))
    assert torch.equal(black[:, 0], black[:, 1])
    assert black.max() == 9
    assert black.min() >= 4  # at a corner, 2x2 of the square remain


def test_contrast_brightness_and_noise_have_their_strength():
    images = torch.rand(4000, 1, 8, 8, generator=generator("images"))
    stretched = KINDS["contrast"](images, 0.5, generator("test"))
    factor = stretched.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert 0.5 <= factor.min() < 0.51
    assert 1.49 < factor.max() <= 1.5001
    torch.testing.assert_close(stretched.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)))
    lift = (KINDS["brightness"](images, 0.2, generator("test")) - images).mean(dim=(1, 2, 3))
    assert abs(lift.std() - 0.2 / 3**0.5) < 0.005
    change = KINDS["noise"](images, 0.1, generator("test")) - images
    assert abs(change.std() - 0.1) < 0.001
    assert abs(change.mean()) < 0.001


def test_an_images_augmentation_ignores_the_other_kinds():
    images = torch.rand(20, 1, 8, 8)
    noise_alone = augment_epoch(images, {**PRESETS["none"], "noise": 0.1}, 0, 0) - images
    bright = {**PRESETS["none"], "noise": 0.1, "brightness": 0.3}
    both = augment_epoch(images, bright, 0, 0)
    lift = both - images - noise_alone
    torch.testing.assert_close(lift, lift[:, :, :1, :1].expand_as(lift), rtol=0, atol=1e-6)
    assert torch.equal(augment_epoch(images, PRESETS["none"], 0, 0), images)


def test_lighting_follows_the_principal_components():
    torch.manual_seed(0)
    offsets = torch.stack([lighting(0.1) for _ in range(4000)])
    assert abs(offsets.norm(dim=1).pow(2).mean().sqrt() / 0.1 - 0.2184) < 0.01  # root of sum of e^2
    assert torch.equal(lighting(0.0), torch.zeros(3))

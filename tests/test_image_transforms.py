"""The papers' augmentations of photographs: crops, colors, and the pixels that a model takes."""

import pytest
import torch

from normrepro.data import DataError
from normrepro.data.image_transforms import (
    EIGENVALUES,
    EIGENVECTORS,
    PRESETS,
    check_options,
    eval_crop,
    lighting,
    scale,
    train_crop,
)
from tests.batches import joined
from tests.photos import folder, make_photos


def options(preset, **more):
    return check_options({**PRESETS["none"], **PRESETS[preset], **more})


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_crops_every_shape_to_the_size_asked_for(preset):
    size = 229  # EvalNorm's
    torch.manual_seed(0)
    crop = train_crop(size, options(preset))
    for height, width in [(300, 90), (40, 40)]:
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        for cut in (crop(image), eval_crop(size)(image)):
            assert (cut.dtype, cut.shape) == (torch.uint8, (3, size, size))


def test_mabn_code_crops_squares_of_eight_to_a_hundred_percent():
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(200.0), torch.arange(200.0), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    crop = train_crop(64, options("mabn_code", flip=0.0))
    spans = []
    for _ in range(200):
        cut = crop(image).float()
        height, width = (cut[c].max() - cut[c].min() for c in (0, 1))
        assert abs(height - width) <= 4
        spans.append(float(height + width) / 2)
    assert min(spans) >= 0.08**0.5 * 200 - 6
    assert max(spans) > 0.9 * 200


def test_mabn_codes_pixels_are_whole_numbers_of_bgr_with_clipped_lighting():
    images = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8)
    light = torch.tensor([[0.0, 0.0, 0.0]] * 4 + [[0.3, -0.3, 0.01]])
    x = scale(images, light, "bgr_bytes")
    assert torch.equal(x[:4], images[:4].flip(1).float())
    red, green, blue = images[4].float()
    assert torch.equal(x[4, 2], (red + 76.5).clamp(max=255).floor())
    assert torch.equal(x[4, 1], (green - 76.5).clamp(min=0).floor())
    assert torch.equal(x[4, 0], (blue + 2.55).clamp(max=255).floor())


def test_the_switch_of_the_pixels_holds_in_evaluation_too(tmp_path):
    photos = make_photos(tmp_path)
    bgr, _ = joined(folder(photos, augment="mabn_code").eval_batches())
    rgb, _ = joined(folder(photos, augment="standard").eval_batches())
    assert torch.equal(bgr, bgr.round())
    assert 60 < bgr.mean() < 200
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close((rgb * std + mean) * 255, bgr.flip(1), rtol=0, atol=1e-3)


def test_lighting_moves_along_the_principal_components():
    torch.manual_seed(0)
    offset = lighting(0.1)
    torch.manual_seed(0)
    strengths = torch.randn(3) * 0.1
    wanted = sum(
        strengths[k] * EIGENVALUES[k] * torch.tensor([row[k] for row in EIGENVECTORS])
        for k in range(3)
    )
    torch.testing.assert_close(offset, wanted)


def test_inception_distorts_colors_in_training_alone():
    torch.manual_seed(0)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8) + torch.tensor([200, 100, 50]).view(3, 1, 1)
    image = image.to(torch.uint8)
    crop = train_crop(32, options("inception"))
    colors = torch.stack([crop(image).float().mean((1, 2)) for _ in range(50)])
    assert colors.std(0).min() > 5
    assert torch.equal(eval_crop(32)(image), image[:, :32, :32])
    plain = train_crop(32, options("inception", jitter=0.0))
    assert torch.equal(plain(image), image[:, :32, :32])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"jitter": [0.1, 0.1]}, r"jitter=\[0.1, 0.1\] must be a number from 0 to 1, or four"),
        ({"jitter": [0.1, 0.1, 0.1, 0.6]}, "hue to 0.5"),
        ({"jitter": 2}, "jitter=2"),
        ({"jitter": None}, "jitter=None"),
        ({"pixels": "rgb"}, "pixels=rgb is none of normalized, bgr_bytes"),
        ({"lighting": -1}, "lighting=-1"),
    ],
)
def test_options_out_of_their_limits_are_refused(option, says):
    with pytest.raises(DataError, match=says):
        check_options({**PRESETS["none"], **option})

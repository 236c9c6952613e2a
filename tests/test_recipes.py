"""The recipes hold the papers' numbers, and their rules move with the batch."""

from typing import Any

import pytest

from normrepro import config
from normrepro.config import ConfigError
from normrepro.hints import groups
from normrepro.training.optim import lr_factor

# recipe: (images per step, devices, normalization batch, rate, epochs, steps, schedule); from the
# papers' texts: MABN B.2, CBN 4.1, EvalNorm 4.1 and 4.2, XBNBlock 5.2.1 and Figure 2.
PAPERS: dict[str, tuple[Any, ...]] = {
    "mabn_imagenet": (256, 8, 2, 0.1, None, 600_000, "step"),
    "cbn_imagenet": (16, 4, 4, 0.1 * 4 / 32, 100, None, "cosine"),
    "evalnorm_cifar": (128, 1, 4, 0.1, None, 128_000, "cosine"),
    "evalnorm_imagenet": (16, 8, 2, 0.1 * 16 / 256, 60, None, "cosine"),
    "xbnblock_imagenet": (256, 2, 128, 0.1, 100, None, "step"),
    "xbnblock_advanced": (256, 2, 128, 0.1, 100, None, "step"),
    "xbnblock_mnist": (10_000, 1, 10_000, 0.1, 80, None, "step"),
}


def test_every_recipe_of_a_paper_is_held_to_its_numbers() -> None:
    assert set(PAPERS) == {name for name in groups()["recipe"] if name != "digits"}


@pytest.mark.parametrize("name", PAPERS)
def test_recipes_hold_the_papers_numbers(name: str) -> None:
    cfg = config.compose([f"recipe={name}"])
    config.check(cfg)
    recipe, batch = cfg.recipe, cfg.batch
    found = (batch.total, batch.devices, batch.norm, recipe.optimizer.lr)
    found += (recipe.epochs, recipe.steps, recipe.schedule.name)
    assert found == (*PAPERS[name][:3], pytest.approx(PAPERS[name][3]), *PAPERS[name][4:])
    plain = name == "xbnblock_mnist"  # gradient descent
    assert recipe.optimizer.weight_decay == (0 if plain else 1e-4)
    assert recipe.optimizer.momentum == (0 if plain else 0.9)
    assert recipe.decay_norms
    assert (recipe.name, recipe.mixup, recipe.warmup) == (name, None, 0)


@pytest.mark.parametrize("norm", ["cbn", "gn"])
@pytest.mark.parametrize(
    ("recipe", "devices", "per_image"),
    [("cbn_imagenet", 4, 0.1 / 32), ("evalnorm_imagenet", 8, 8 * 0.1 / 256)],
)
def test_the_normalization_batch_alone_moves_the_batch_and_the_rate(
    recipe: str, devices: int, per_image: float, norm: str
) -> None:
    names = set()
    for images in (32, 4, 1):
        cfg = config.compose([f"recipe={recipe}", f"norm={norm}", f"batch.norm={images}"])
        config.check(cfg)
        config.check(cfg, world=devices)
        assert cfg.batch.total == devices * images
        assert cfg.recipe.optimizer.lr == pytest.approx(per_image * images)
        names.add(config.run_name(cfg))
        assert config.identity(cfg)["batch"]["total"] == devices * images
    assert len(names) == 3  # also where the norm does not look across the batch


def test_the_written_out_total_is_the_same_run() -> None:
    one = config.compose(["recipe=cbn_imagenet", "batch.norm=8"])
    other = config.compose(["recipe=cbn_imagenet", "batch.norm=8", "batch.total=32"])
    assert config.run_name(one) == config.run_name(other)


def test_a_batch_that_does_not_fit_the_rule_is_refused_by_its_own_message() -> None:
    for line, message in {
        "batch.norm=0": "batch.norm=0 must be an integer of at least 1",
        "batch.norm=null": "batch.norm=None must be an integer",
        "batch.devices=0": "batch.devices=0 must be an integer of at least 1",
        "batch.total=30": "batch.devices=4 does not divide the step's 30 images",
    }.items():
        with pytest.raises(ConfigError, match=message):
            config.check(config.compose(["recipe=cbn_imagenet", line]))
    cfg = config.compose(["recipe=xbnblock_imagenet", "batch.devices=3"])
    with pytest.raises(ConfigError, match=r"batch\.devices=3 does not divide"):
        config.check(cfg)


def test_xbnblocks_gpus_share_the_batch() -> None:
    cfg = config.compose(["recipe=xbnblock_imagenet", "model=resnext101", "batch.devices=4"])
    config.check(cfg)
    assert (cfg.batch.total, cfg.batch.norm) == (256, 64)


def test_full_batch_descent_normalizes_over_all_images_at_one_rate() -> None:
    for images in (32, 1024):
        cfg = config.compose(["recipe=xbnblock_mnist", f"batch.total={images}"])
        config.check(cfg)
        assert (cfg.batch.norm, cfg.recipe.optimizer.lr) == (images, 0.1)
        assert [lr_factor(step, 80, cfg.recipe.schedule) for step in (0, 79)] == [1, 1]


def test_the_advanced_recipe_is_the_base_with_switches() -> None:
    base = config.identity(config.compose(["recipe=xbnblock_imagenet"]))
    switched = config.compose(
        [
            "recipe=xbnblock_advanced",
            "recipe.label_smoothing=0.1",
            "recipe.mixup=0.2",
            "recipe.schedule.name=cosine",
        ]
    )
    config.check(switched)
    recipe = config.identity(switched)["recipe"]
    differs = {key for key in recipe if recipe[key] != base["recipe"].get(key)}
    assert differs == {"name", "label_smoothing", "mixup", "schedule"}


def test_xbnblocks_steps_are_at_30_60_and_90_epochs() -> None:
    schedule = config.compose(["recipe=xbnblock_imagenet"]).recipe.schedule
    per_epoch = 1_281_167 // 256
    factors = [lr_factor(e * per_epoch, 100 * per_epoch, schedule) for e in (29, 30, 60, 90, 99)]
    assert factors == pytest.approx([1, 0.1, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("norm", "limits", "r_max", "d_max", "momentum"),
    [
        ("brn", "fractions", 3, 5, 0.1),  # MABN: Ioffe's ramp as fractions, alpha of its appendix
        ("brn_ioffe", "ioffe", 3, 5, 0.01),  # CBN: strictly the original paper
        ("brn_constant", "constant", 2, 1, 0.1),  # EvalNorm, section 4.1
    ],
)
def test_each_papers_batch_renormalization_is_a_choice(
    norm: str, limits: str, r_max: float, d_max: float, momentum: float
) -> None:
    layer = config.compose([f"norm={norm}"]).norm.layer
    assert (layer.limits, layer.r_max, layer.d_max, layer.momentum) == (
        limits,
        r_max,
        d_max,
        momentum,
    )

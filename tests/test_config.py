"""The config tree composes, each invariant has its message, identity is what changes a number."""

import copy
import re

import pytest
from omegaconf import DictConfig, OmegaConf

from normrepro import config, hints
from normrepro.config import ConfigError

CHOICES = [(group, choice) for group, choices in hints.groups().items() for choice in choices]
FITS = {
    "paper": "imagenet",
    "single_gpu": "imagenet",
    "study": "cifar10",
}  # scale to a data set that it fits


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["=".join(pair) for pair in CHOICES])
def test_every_choice_composes_and_passes_the_checks(group: str, choice: str) -> None:
    overrides = [f"{group}={choice}"]
    if group == "scale":
        overrides.append(f"data={FITS.get(choice, 'digits')}")
    cfg = config.compose(overrides)
    config.check(cfg)
    assert "hydra" not in cfg
    if (group, choice) != ("model", "timm"):  # its name is the timm model's
        assert cfg[group].name == choice
    assert config.run_dir(cfg).name == config.run_name(cfg)


def test_all_groups_of_the_design_are_there() -> None:
    assert set(hints.groups()) == {"data", "model", "norm", "recipe", "scale", "task"}


def test_a_data_set_brings_its_model_and_recipe_and_the_command_line_wins() -> None:
    cfg = config.compose(["data=imagenet"])
    assert (cfg.model.name, cfg.recipe.name) == ("resnet50", "mabn_imagenet")
    cfg = config.compose(["model=resnet18", "recipe=digits", "data=imagenet"])
    assert (cfg.model.name, cfg.recipe.name) == ("resnet18", "digits")


# Identity ------------------------------------------------------------------------------------


def leaves(node: object, path: str = "") -> dict[str, object]:
    """Every leaf of a config: dotted key to value."""
    if not isinstance(node, dict):
        return {path: node}
    found: dict[str, object] = {}
    for key, value in node.items():
        found |= leaves(value, f"{path}.{key}" if path else str(key))
    return found


def other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, 7]
    return "other" if value is None else f"{value}x"


OUTSIDE = re.compile(
    r"run\..*|data\.(root|workers|download|expect\..*)|scale\.(data|sentence)"
)  # written down again: a change of the code's own list must be made twice


def names_after_each_change(overrides: list[str]) -> dict[str, bool]:
    """Leaf to whether changing it changes the run's name's hash."""
    cfg = config.compose(overrides)
    before = config.identity(cfg)
    moved = {}
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=True)).items():
        changed = copy.deepcopy(cfg)
        OmegaConf.update(changed, key, other(value), merge=False)
        moved[key] = config.identity(changed) != before
    return moved


@pytest.mark.parametrize("norm", ["bn", "brn", "mabn"])
@pytest.mark.parametrize("data", ["digits", "imagenet"])
def test_each_leaf_moves_the_identity_unless_it_cannot_change_a_number(
    norm: str, data: str
) -> None:
    moved = names_after_each_change([f"norm={norm}", f"data={data}"])
    assert moved["batch.norm"]
    assert moved["eval.state"]
    assert moved["precision"]
    assert not moved["run.threads"]
    wrong = [key for key, does in moved.items() if does == bool(OUTSIDE.fullmatch(key))]
    assert not wrong, f"these go the wrong way: {wrong}"


def test_a_norm_within_each_image_drops_the_batch_norm_and_the_devices() -> None:
    moved = names_after_each_change(["norm=gn"])
    still = [key for key in moved if not OUTSIDE.fullmatch(key) and not moved[key]]
    assert sorted(still) == ["batch.devices", "batch.norm"]
    assert config.run_name(config.compose(["norm=gn", "batch.norm=8"])) == config.run_name(
        config.compose(["norm=gn", "batch.norm=2"])
    )


def test_mixup_within_a_device_keeps_the_devices() -> None:
    moved = names_after_each_change(["norm=gn", "recipe.mixup=0.2"])
    assert moved["batch.devices"]
    assert moved["recipe.mixup"]
    assert not moved["batch.norm"]


def test_only_a_folder_of_unknown_counts_is_told_by_its_root() -> None:
    assert names_after_each_change(["data=folder"])["data.root"]
    assert not names_after_each_change(["data=imagenet"])["data.root"]


def small(**changes: object) -> DictConfig:
    """A config of fixed content, whose name must never change."""
    base = {
        "seed": 0,
        "precision": "float32",
        "batch": {"total": 64, "devices": 2, "norm": 2},
        "recipe": {"lr": 0.1, "epochs": 20, "at": [0.25, 0.5]},
        "norm": {"name": "mabn", "across_batch": True, "layer": {"_target_": "a.b.MABN"}},
        "data": {"name": "digits", "root": "/x", "expect": {"classes": 10}},
        "model": {"name": "hub:some/net"},
        "scale": {"name": "proxy", "data": ["digits"], "max_steps": None, "sentence": "..."},
        "run": {"root": "runs"},
    }
    return OmegaConf.create(base | changes)


def test_run_names_are_stable() -> None:
    assert config.run_name(small()) == "digits-hub_some_net-mabn-n2-proxy-s0-c1d7b91062"


@pytest.mark.parametrize(
    "changes",
    [
        {"new": None},
        {"new": {"inner": None}},
        {"recipe": {"at": [0.25, 0.5], "epochs": 20.0, "lr": 1e-1, "later": None}},
        {"norm": {"name": "mabn", "across_batch": True, "layer": {"_target_": "moved.to.MABN"}}},
        {"recipe": {"lr": "${scaled_lr:0.4,256,${batch.total}}", "epochs": 20, "at": [0.25, 0.5]}},
        {"run": {"root": "elsewhere", "eval": "x"}},
        {"hydra": {"run": {"dir": "${run_dir:}"}}},
    ],
    ids=["null", "nested null", "order and 20.0", "module", "resolver", "run", "hydra"],
)
def test_what_says_the_same_has_the_same_name(changes: dict) -> None:
    config.register_resolvers()
    assert config.identity(small(**changes)) == config.identity(small())


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"seed": "0"},
        {"new": False},
        {"new": 0},
        {"norm": {"name": "mabn", "across_batch": True, "layer": {"_target_": "a.b.BRN"}}},
        {"recipe": {"lr": 0.1, "epochs": 20, "at": [0.5, 0.25]}},
    ],
    ids=["seed", "type", "false", "zero", "class", "list order"],
)
def test_what_says_something_else_has_another_name(changes: dict) -> None:
    assert config.run_name(small(**changes)) != config.run_name(small())


def test_the_resolvers_give_the_name_whatever_stands_in_the_hydra_node() -> None:
    config.register_resolvers()
    cfg = small(hydra={"run": {"dir": "${run_dir:}", "sub": "${run_name:}"}, "job": {"id": "???"}})
    assert cfg.hydra.run.dir == f"runs/{config.run_name(small())}"
    assert cfg.hydra.run.sub == config.run_name(small())


def test_a_missing_value_still_has_a_name() -> None:
    cfg = small(batch={"total": 64, "devices": 2, "norm": "???"}, model={"name": "???"})
    assert re.fullmatch(r"digits-None-mabn-nNone-proxy-s0-[0-9a-f]{10}", config.run_name(cfg))


def test_scaled_learning_rate() -> None:
    assert config.compose(["recipe=mabn_imagenet"]).recipe.optimizer.lr == pytest.approx(0.1)
    half = config.compose(["recipe=mabn_imagenet", "batch.total=128"])
    assert half.recipe.optimizer.lr == pytest.approx(0.05)


# Checks --------------------------------------------------------------------------------------

REFUSED = {
    "batch.norm=3": "batch.norm=3 does not divide the 32 images per device",
    "batch.norm=0": "batch.norm=0 must be an integer of at least 1",
    "batch.norm=2.5": "batch.norm=2.5 must be an integer of at least 1",
    "batch.norm=null": "batch.norm=None must be an integer",
    "batch.total=65": "batch.devices=2 does not divide the step's 65 images",
    "batch.devices=-2": "batch.devices=-2 must be an integer of at least 1",
    "norm=mabn batch.norm=64": "only norm=bn can join devices: lower batch.norm to 32 or less",
    "batch.norm=48": "batch.norm=48 must join whole devices",
    "batch.norm=128": "batch.norm=128 must join whole devices",
    "batch.devices=4 batch.norm=48": "that divides batch.devices=4",
    "seed=-1": "seed=-1 must be an integer of at least 0",
    "seed=null": "seed=None must be an integer",
    "precision=half": "precision=half is none of float32, float64, bfloat16, float16",
    "eval.state=last": "eval.state=last is none of first, mean",
    "run.device=tpu": "run.device=tpu is none of auto, cpu, cuda",
    "run.wandb=on": "run.wandb=on is none of auto, online, offline, disabled",
    "run.threads=0": "run.threads=0 must be an integer of at least 1",
    "run.timeout=0": "run.timeout=0 must be an integer of at least 1",
    "recipe.steps=5 recipe.epochs=5": "recipe.epochs=5 and recipe.steps=5: set exactly one",
    "recipe.steps=null recipe.epochs=null": "recipe.epochs=None and recipe.steps=None: set exactly",
    "recipe.steps=null recipe.epochs=0": "recipe.epochs=0 must be an integer of at least 1",
    "recipe.epochs=null recipe.steps=abc": "recipe.steps=abc must be an integer of at least 1",
    "scale.max_steps=0": "scale.max_steps=0 must be an integer of at least 1",
    "recipe.warmup=1": "recipe.warmup=1 must be a number from 0 to below 1",
    "recipe.label_smoothing=-0.1": "recipe.label_smoothing=-0.1 must be a number from 0",
    "recipe.mixup=0": "recipe.mixup=0 must be a number above 0; null switches mixup off",
    "recipe.mixup=much": "recipe.mixup=much must be a number above 0",
    "recipe.schedule.name=linear": "recipe.schedule.name=linear is none of step, cosine",
    "recipe.schedule.at=[0.5,1.5]": "recipe.schedule.at=1.5 must be a number from 0 to below 1",
    "recipe.schedule.at=[0.5,0.25]": "recipe.schedule.at=[0.5, 0.25] must rise",
    "recipe.optimizer.lr=0": "recipe.optimizer.lr=0 must be a number above 0",
    "recipe.init=zeros": "recipe.init=zeros is none of default, kaiming_fan_out, kaiming_fan_in",
    "scale=paper": "scale=paper does not fit data=digits: it fits data=imagenet or data=",
    "scale=proxy data=imagenet": "scale=proxy does not fit data=imagenet: it fits data=digits",
}


@pytest.mark.parametrize("line", REFUSED)
def test_each_invariant_is_refused_with_the_override_to_change(line: str) -> None:
    cfg = config.compose(line.split())
    with pytest.raises(ConfigError, match=re.escape(REFUSED[line])):
        config.check(cfg)


@pytest.mark.parametrize(
    "line",
    [
        "batch.norm=1",
        "batch.norm=32",
        "batch.norm=64",
        "batch.devices=4 batch.norm=32",
        "norm=gn batch.norm=3",
        "norm=mabn batch.norm=32",
        "recipe.epochs=null recipe.steps=10",
        "recipe.schedule.at=[]",
        "scale=smoke data=folder",
    ],
)
def test_these_are_fine(line: str) -> None:
    config.check(config.compose(line.split()))


@pytest.mark.parametrize(
    ("line", "world", "message"),
    [
        ("norm=mabn", 2, None),
        ("norm=mabn", 3, "3 processes cannot share batch.devices=2 evenly"),
        ("norm=mabn batch.devices=8", 16, "16 processes cannot share batch.devices=8 evenly"),
        ("batch.devices=4 batch.norm=64", 4, None),
        ("batch.total=60 batch.devices=6 batch.norm=20", 2, "joins 2 devices, which straddles"),
        ("batch.total=60 batch.devices=6 batch.norm=20", 3, None),
    ],
)
def test_the_world_must_fit_the_devices(line: str, world: int, message: str | None) -> None:
    cfg = config.compose(line.split())
    if message is None:
        return config.check(cfg, world)
    with pytest.raises(ConfigError, match=message):
        config.check(cfg, world)


# Hints ---------------------------------------------------------------------------------------

HINTS = {
    "norm=mban": "norm=mban does not exist: did you mean norm=mabn",
    "model=resnet5": "did you mean model=resnet50",
    "norm=zzz": "norm=zzz does not exist (there are bn, bn_disturbed, ",
    "nrom=mabn": "nrom is no key of this config: did you mean norm=mabn?",
    "normalizer=mabn": "did you mean norm=mabn",
    "mabn": "'mabn' is not of the form key=value: did you mean norm=mabn?",
    "batch.nrom=2": "batch.nrom is no key of this config: did you mean batch.norm=2",
    "lr=0.1": "did you mean recipe.optimizer.lr=0.1?",
    "norm.layer.memory=4": "norm.layer.memory is no key of this config",  # norm=bn has none
    "zzz.yyy=1": "zzz.yyy is no key of this config (to add it on purpose: +zzz.yyy=...)",
    "batch.total=abc": "batch.total=abc: batch.total must be a number, as 64 is",
    "batch.total=true": "batch.total must be a number",
    "run.compile=3": "run.compile must be true or false, as False is",
    "recipe.schedule.at=0.5": "recipe.schedule.at must be a list",
    "batch=64": "batch must be a mapping",
    "recipe.optimizer.lr=fast": "recipe.optimizer.lr must be a number",
    "norm=bn,mabn": "norm=bn,mabn asks for several runs: add -m for a sweep",
    "batch.norm=[1": "'batch.norm=[1' cannot be read",
    "hydra.job.nmae=x": "Could not override 'hydra.job.nmae'",
}


@pytest.mark.parametrize("override", HINTS)
def test_a_typo_is_refused_with_a_hint(override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(HINTS[override])):
        config.compose([override])


def test_what_is_meant_passes() -> None:
    cfg = config.compose(
        ["norm=mabn", "norm.layer.memory=4", "+norm.layer.extra=1", "recipe.augment=null"]
    )
    assert (cfg.norm.layer.memory, cfg.norm.layer.extra) == (4, 1)
    assert config.compose(["recipe.augment=standard"]).recipe.augment == "standard"


def test_composing_again_is_not_touched_by_what_was_done_to_the_first() -> None:
    first = config.compose(["norm=mabn"])
    first.norm.layer.clip = 99.0
    assert config.compose(["norm=mabn"]).norm.layer.clip != 99.0


@pytest.mark.parametrize(
    "overrides",
    [
        ["norm=mabn", "batch.norm=2", "recipe.epochs=7"],
        ["data=imagenet", "model=timm", "model.name=resnet18", "data.root='/a b/c=d'"],
        ["recipe.steps=100", "recipe.epochs=null", "+more.deep=[1,2]", "++seed=3"],
        ["~recipe.epochs", "recipe.schedule.at=[0.1,0.2]", "hydra.verbose=true"],
        ["scale=smoke", "task=classification", "++recipe.augment={flip: 0.5}"],
    ],
)
def test_setting_values_on_composed_choices_is_what_hydra_does(overrides):
    config.register_resolvers()
    assert hints.compose_raw(tuple(overrides)) == hints._composed(tuple(overrides))

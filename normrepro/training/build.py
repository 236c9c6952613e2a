"""From a config to the objects of a run: data, model with its norms swapped, task."""

import logging
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from normrepro.config import ConfigError, counts_are_known
from normrepro.data.base import Source, seed_of
from normrepro.distributed import Ranks
from normrepro.models import initialize
from normrepro.models.dropout import share_dropout
from normrepro.norms import Normalizer, convert
from normrepro.tasks.classification import evaluating
from normrepro.training.chance import Chance

log = logging.getLogger("normrepro")


def instantiate(config: DictConfig, **more: Any) -> Any:
    """Build what a `_target_` names.

    Raises:
        ConfigError: The target refuses its arguments, in its own words.
    """
    try:
        return hydra_instantiate(config, **more)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        if isinstance(cause, ValueError | TypeError):
            raise ConfigError(f"{config.get('_target_')}: {cause}") from error
        raise


def data(cfg: DictConfig, ranks: Ranks) -> Source:
    """Open the data of a run, and refuse what is not the paper's at the paper's scale."""
    augment = cfg.recipe.augment
    options = {k: cfg.data[k] for k in ("root", "size", "workers", "download") if k in cfg.data}
    source = instantiate(
        cfg.data.source,
        seed=cfg.seed,
        total=cfg.batch.total,
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
        augment=OmegaConf.to_container(augment) if OmegaConf.is_config(augment) else augment,
        **options,
    )
    compare_with_known(cfg, counts(source))
    return source


def counts(source: Source) -> dict[str, int]:
    """Return what was read: classes and images."""
    return {"classes": source.classes, "train": source.train_size, "val": source.val_size}


def compare_with_known(cfg: DictConfig, found: dict[str, int]) -> None:
    """Refuse other data than the paper's at its scale, and warn of it elsewhere."""
    expect = OmegaConf.to_container(cfg.data.expect, resolve=True)
    wanted = {key: count for key, count in expect.items() if count is not None}
    if all(found[key] == count for key, count in wanted.items()):
        return
    has = f"{wanted}; data.root={cfg.data.get('root')} has {found}"
    if cfg.scale.name == "paper":
        raise ConfigError(
            f"scale=paper needs the paper's data, {has}. "
            "Set data.root to the full set, or scale=custom (scale=single_gpu in a table)"
        )
    log.warning("data=%s is known to have %s", cfg.data.name, has)


def length(cfg: DictConfig, steps_per_epoch: int) -> int:
    """Return the optimizer steps of a run."""
    steps = cfg.recipe.steps or cfg.recipe.epochs * steps_per_epoch
    return min(steps, cfg.scale.max_steps or steps)


def model(
    cfg: DictConfig, classes: int, shape: tuple[int, ...], ranks: Ranks, steps: int
) -> nn.Module:
    """Build a model, initialize it from the seed, put its normalizers in and move it to the device.

    Args:
        cfg: The run's config.
        classes: Outputs.
        shape: (C, H, W) of an image.
        ranks: The processes; each stands for `batch.devices / world` replicas.
        steps: Length of the run, for layers with a schedule.
    """
    torch.manual_seed(seed_of(cfg.seed, "weights"))
    net = instantiate(cfg.model.build, num_classes=classes)
    if not cfg.model.get("pretrained"):
        net = initialize(net, cfg.recipe.init)
    net = share_dropout(net, ranks.rank, ranks.world)
    example = torch.zeros(2, *shape)
    _try(net, example, cfg)
    batchwise = cfg.norm.across_batch
    group = cfg.batch.norm if batchwise else None
    replicas = cfg.batch.devices // ranks.world if batchwise else 1
    try:
        net = convert(net, OmegaConf.to_container(cfg.norm, resolve=True), group, replicas, example)
    except (ValueError, InstantiationException) as error:
        raise ConfigError(f"norm={cfg.norm.name}: {error.__cause__ or error}") from error
    for layer in net.modules():
        if isinstance(layer, Normalizer):
            layer.eval_state, layer.run_length = cfg.eval.state, steps
    dtype = torch.float64 if cfg.precision == "float64" else torch.float32
    memory = memory_format(channels_last(cfg, ranks.device))
    return net.to(ranks.device, dtype, memory_format=memory)


SMALL = (32, 64)  # pixels a side for which CPUs are faster in channels_last


def channels_last(cfg: DictConfig, device: torch.device) -> bool:
    """Tell whether images are kept as (N, H, W, C): the config's word, or where it is faster."""
    wanted = cfg.run.channels_last
    if wanted != "auto":
        return bool(wanted)
    if device.type == "cuda":  # tensor cores work in this format
        return cfg.precision in ("bfloat16", "float16")
    # On CPUs a ResNet-20's step on CIFAR takes 0.8 of the time, a ResNet-18's at 96 pixels 1.05.
    return SMALL[0] <= cfg.data.size <= SMALL[1]


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return torch's name of the format of weights and images."""
    return torch.channels_last if channels_last else torch.contiguous_format


def _try(net: nn.Module, example: torch.Tensor, cfg: DictConfig) -> None:
    """Show the untrained model one empty batch: a misfit ends here, not in the first step."""
    with evaluating(net):
        try:
            net(example)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"model={cfg.model.name} does not take images of shape {tuple(example.shape[1:])} "
                "(data.size and data.channels set it; data=digits needs data.channels=3 for RGB "
                f"models): {error}"
            ) from error


def listed(cfg: DictConfig, kind: str) -> list[Any]:
    """Build what the task and the norm list under a key, such as `evaluations`.

    Raises:
        ConfigError: One of them refuses its arguments.
    """
    found = [part.get(kind) or {} for part in (cfg.task, cfg.norm)]
    return [instantiate(one) for part in found for one in part.values() if one is not None]


def chance(cfg: DictConfig, net: nn.Module, classes: int, ranks: Ranks) -> Chance:
    """Return what prepares each step's randomness for a process's part of the devices."""
    local = cfg.batch.devices // ranks.world
    share = cfg.batch.total // cfg.batch.devices
    alpha = cfg.recipe.get("mixup")
    return Chance(net, classes, cfg.seed, ranks.rank, share, ranks.rank * local, alpha)


def told(cfg: DictConfig) -> dict[str, Any]:
    """Return a run's config for its record: without the folders of this machine.

    Where nothing but its folder tells the data from other data, that folder stays.
    """
    config = plain(cfg)
    config["run"]["root"] = None
    if counts_are_known(cfg):
        config["data"]["root"] = None
    return config


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain data, resolved, without Hydra's own node."""
    return {k: v for k, v in OmegaConf.to_container(cfg, resolve=True).items() if k != "hydra"}

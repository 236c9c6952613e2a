"""What a run costs, estimated.

Floating point operations of one image's forward pass (torch's counter, which sees convolutions and
matrix products, on the meta device), times three for the backward pass, times the images of the
run, over a sustained throughput that is assumed and can be changed. Counts are remembered beside
the names of runs.
"""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from normrepro import config, names
from normrepro.checks import ConfigError

THROUGHPUT = (
    10.0  # TFLOP/s, assumed: what a V100-class GPU sustains on a ResNet-50 in mixed precision
)
PASSES = 3  # forward, and a backward pass of twice its cost


def run_hours(overrides: Sequence[str], throughput: float = THROUGHPUT) -> float | None:
    """Estimate the GPU-hours of the run that overrides make; None where nobody can know them."""
    told = "\n".join(o for o in overrides if not o.startswith("seed="))
    key, known = _hash(told), _memory()
    if key not in known:
        known[key] = _count(overrides)
    counts = known[key]
    return None if counts is None else hours(*counts, throughput)


def hours(flops: int, images: int, throughput: float) -> float:
    """Turn operations of a forward pass and images of a run into hours at so many TFLOP/s."""
    return flops * PASSES * images / (throughput * 1e12) / 3600


def gpu_hours(cfg: DictConfig, throughput: float = THROUGHPUT) -> float:
    """Estimate the GPU-hours of a run at a throughput in TFLOP/s."""
    return hours(flops_per_image(cfg), images(cfg), throughput)


def _count(overrides: Sequence[str]) -> list[int] | None:
    """Count operations and images; None for data of unknown size."""
    cfg = config.compose(overrides)
    try:
        return [flops_per_image(cfg), images(cfg)]
    except ConfigError:
        return None


@functools.cache
def _memory() -> dict[str, list[int] | None]:
    """Read the counts of runs that earlier processes made."""
    return names.remembered("costs", _hash(names.fingerprint(), _model_code()))


@functools.cache
def _flops_memory() -> dict[str, int]:
    """Read the operations of models that earlier processes counted."""
    return names.remembered("flops", _hash(_model_code()))


@functools.cache
def _model_code() -> str:
    """Hash what builds models and counts their operations."""
    files = [*sorted(Path(__file__).parents[1].glob("models/*.py")), Path(__file__)]
    versions = [importlib.metadata.version(name) for name in ("torch", "torchvision", "timm")]
    return _hash(*(path.read_text(encoding="utf-8") for path in files), *versions)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def images(cfg: DictConfig) -> int:
    """Return the number of images that a run trains on, each pass over one counted."""
    steps = cfg.recipe.steps
    if steps is None:
        if cfg.data.expect.train is None:
            raise ConfigError(
                f"data={cfg.data.name} does not say how many images it has: "
                "set data.expect.train or recipe.steps"
            )
        steps = cfg.recipe.epochs * (cfg.data.expect.train // cfg.batch.total)
    return min(steps, cfg.scale.max_steps or steps) * cfg.batch.total


def flops_per_image(cfg: DictConfig) -> int:
    """Count the operations of one image's forward pass; a multiply-add is two."""
    build = json.dumps(OmegaConf.to_container(cfg.model.build, resolve=True))
    image = (cfg.data.expect.classes, cfg.data.channels, cfg.data.size)
    key, known = _hash(build, *map(str, image)), _flops_memory()
    if key not in known:
        known[key] = _flops(build, *image)
    return known[key]


def _flops(build: str, classes: int, channels: int, size: int) -> int:
    """Count the forward pass of a model, given as JSON."""
    import torch  # here: the driver asks this module what to do and trains nothing itself
    from hydra.utils import instantiate
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = instantiate(json.loads(build), num_classes=classes).eval()
        example = torch.zeros(1, channels, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops()

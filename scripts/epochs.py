"""Time an epoch of `train.py`'s loop beside a loop written by hand, for bench.py."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timing
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from normrepro import config, norms
from normrepro.data.byte_images import ByteImages
from normrepro.distributed import Ranks
from normrepro.training import build, optim
from normrepro.training.progress import Progress
from normrepro.training.trainer import Trainer
from normrepro.training.wandb_log import Mirror

TITLE = "An epoch of CIFAR's size of image (ResNet-20, batch 128)"
TOTAL, STEPS, JUDGED = 128, 20, 512
PAIRS = 15  # at most: a pair takes seconds
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def table(args: argparse.Namespace) -> Iterator[str]:
    """Measure: one row per memory format."""
    yield (
        f"{STEPS} steps and {JUDGED} images judged. The hand-written loop has its batches augmented"
        " and in memory, and no checks, logs or files; train.py's crops, flips, checks every step, "
        "shows its progress, logs to W&B (offline) and writes a checkpoint. A full epoch has 391 "
        "steps, and its evaluation and checkpoint weigh accordingly less."
    )
    yield ""
    yield "| memory format | by hand, s | train.py / by hand | channels_last / NCHW, by hand |"
    yield "|---|---|---|---|"
    plain = 0.0
    for form in ("false", "true"):
        with tempfile.TemporaryDirectory() as folder:
            seconds, ratio = compare(form, Path(folder), args)
        plain = plain or seconds
        name = "channels_last" if form == "true" else "NCHW"
        yield f"| {name} | {seconds:.2f} | {ratio:.3f} | {seconds / plain:.2f} |"


def compare(form: str, folder: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds by hand, and the median of paired ratios."""
    cfg = config.compose(
        [
            *("data=cifar10", "norm=bn", f"batch.norm={TOTAL}", "recipe.steps=100000"),
            *(f"run.channels_last={form}", f"run.threads={args.threads}", "run.wandb=offline"),
            *(f"run.root={folder}", "run.device=" + ("cpu" if args.device == "cpu" else "cuda")),
        ]
    )
    config.run_dir(cfg).mkdir(parents=True)
    ranks = Ranks(0, 1, torch.device(args.device))
    data = images(args.device)
    model = build.model(cfg, data.classes, data.shape, ranks, cfg.recipe.steps)
    steps = cfg.recipe.steps
    task = build.instantiate(cfg.task.build)
    optimizer = optim.build(model, build.instantiate(cfg.recipe.optimizer), True)
    trainer = Trainer(cfg, ranks, data, model, task, optimizer, steps)
    mine = by_hand(cfg, data, ranks)
    with Mirror(cfg, ranks, []) as mirror, Progress(ranks, steps) as bar:
        bar.start(0)
        theirs = by_trainer(trainer, mirror, bar)
        pairs = min(args.pairs, PAIRS)
        ratios = list(timing.ratios(theirs, mine, pairs, args.device))
    begin = time.perf_counter()
    mine()
    return time.perf_counter() - begin, statistics.median(ratios)


def images(device: str) -> ByteImages:
    """Return random bytes in the shape of CIFAR's."""

    def draw(count: int) -> tuple[Tensor, Tensor]:
        pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        return pixels, torch.randint(10, (count,))

    train, val = draw(TOTAL * STEPS), draw(JUDGED)
    options = {"augment": "standard", "data": "random", "seed": 0, "total": TOTAL}
    return ByteImages(train, val, 10, MEAN, STD, **options, device=device)


def by_trainer(trainer: Trainer, mirror: Mirror, bar: Progress) -> Callable[[], None]:
    """Return an epoch of train.py's loop, with its evaluation and its checkpoint."""

    def run() -> None:
        trainer.epoch(len(trainer.state.history), mirror, bar)
        trainer.snapshots.save(trainer)

    return run


def by_hand(cfg: DictConfig, data: ByteImages, ranks: Ranks) -> Callable[[], None]:
    """Return an epoch over the same model and prefetched tensors, with its evaluation."""
    model = build.model(cfg, data.classes, data.shape, ranks, cfg.recipe.steps)
    memory = build.memory_format(build.channels_last(cfg, ranks.device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    train = [(x.to(memory_format=memory), y) for x, y in data.train_batches(0)]
    judged = [(x.to(memory_format=memory), y) for x, y in data.eval_batches()]

    def run() -> None:
        for x, y in train:
            with norms.step(model):
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            optimizer.zero_grad()
        wrong(model, judged)

    return run


def wrong(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> int:
    """Count the errors on a validation set."""
    model.eval()
    with torch.no_grad():
        count = sum((model(x).argmax(1) != y).sum() for x, y in batches)
    model.train()
    return int(count)

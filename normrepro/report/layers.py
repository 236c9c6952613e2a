"""What a normalizer's statistics go over, found by looking: which inputs move an output.

A layer behind a convolution is shown a few made-up batches. The gradient of one output says over
which images, channels and pixels of the same iteration its statistics go; an output that changes
when an earlier batch is exchanged says over how many iterations.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from normrepro import config
from normrepro.blocks import Block, Grid
from normrepro.tables import Line, Table, overlay

if TYPE_CHECKING:  # torch takes seconds, and nothing else of a report needs it
    from torch import Tensor, nn

SETTING = ("data=digits", "batch.total=8", "batch.devices=2", "batch.norm=4")
CHANNELS, PIXELS = 64, 3
MOST = 10  # iterations; a layer that still looks further back keeps a running average
ABOUT = (
    "Found by showing each layer made-up batches: 8 images per iteration on 2 devices, 4 on each. "
    "A direction counts where an input that lies there moves the output. CBN's window is the one "
    "that the paper's rule gives for 4 images, after its burn-in."
)
HEAD = [
    *("", "#images of an iteration", "#iterations", "#examples for statistics", "norm axis"),
    *("at inference", "paper: #examples for statistics", "paper: norm axis"),
]


@dataclass(frozen=True)
class Reach:
    """How far the statistics of one layer go."""

    images: int
    iterations: int | None  # None: all, as a running average does
    axes: tuple[str, ...]
    linear: bool


def blocks(table: Table) -> list[Block]:
    """Return what the page of a table says of its rows' layers."""
    rows = [_row(table, row, reach(_config(table, row))) for row in table.rows]
    return [ABOUT, Grid(HEAD, rows, numbers=False)]


def fingerprint(table: Table) -> str:
    """Return the hash of all that the page depends on: the table, the layers' code and configs."""
    folders = (Path(__file__).parents[1] / "norms", config.CONFIG_DIR / "norm")
    sources = sorted(path for folder in folders for path in folder.glob("*.*") if path.is_file())
    told = [repr(table).encode(), Path(__file__).read_bytes(), *[p.read_bytes() for p in sources]]
    return hashlib.sha256(b"".join(told)).hexdigest()[:16]


def _config(table: Table, row: Line) -> DictConfig:
    """Compose the config of a row."""
    cfg = config.compose(overlay([SETTING, table.base, row.overrides]))
    config.check(cfg)
    return cfg


def _row(table: Table, row: Line, found: Reach) -> list[str]:
    """Return a row of the grid; the paper's words where the table has such columns."""
    count = found.iterations
    return [
        row.label,
        str(found.images),
        "all (running average)" if count is None else str(count),
        str(found.images) if count is None else str(found.images * count),
        f"({', '.join(found.axes)})",
        "affine per channel" if found.linear else "as in training",
        *[str(row.reported.get(key) or "") for key in ("examples", "axis")],
    ]


def reach(cfg: DictConfig) -> Reach:
    """Find how far the statistics of a config's normalizer go."""
    import torch

    torch.manual_seed(0)
    total = cfg.batch.total
    usual, other = torch.randn(2, MOST, total, 3, PIXELS + 2, PIXELS + 2, dtype=torch.float64)
    output, slope = _run(cfg, usual)

    def matters(back: int) -> bool:
        """Say whether exchanging an earlier batch changes the last output."""
        exchanged = usual.clone()
        exchanged[-1 - back] = other[-1 - back]
        return not torch.equal(_run(cfg, exchanged)[0], output)

    earlier = len(list(takewhile(matters, range(1, MOST))))
    iterations = earlier + 1 if earlier + 1 < MOST else None
    seen = slope.ne(0)
    axes = _axes(seen, total // cfg.batch.devices, iterations)
    images = int(seen.flatten(1).any(1).sum())
    return Reach(images, iterations, axes, linear=bool(_model(cfg)[1].linear))


def _axes(seen: Tensor, share: int, iterations: int | None) -> tuple[str, ...]:
    """Name the directions in which a mask of inputs (N, C, H, W) goes beyond one output."""
    images = seen.flatten(1).any(1)
    channels = int(seen.flatten(2).any(2).any(0).sum())
    named = {
        "batch": bool(images[1:share].any()),
        "channel": channels == seen.shape[1],
        "channel group": 1 < channels < seen.shape[1],
        "spatial": int(seen[0, 0].sum()) > 1,
        "GPU": bool(images[share:].any()),
        "iteration": iterations != 1,
    }
    return tuple(name for name, holds in named.items() if holds)


def _run(cfg: DictConfig, batches: Tensor) -> tuple[Tensor, Tensor]:
    """Show a layer batches without an update; return the last output and one pixel's slopes."""
    import torch

    from normrepro.norms import step

    model, seen = _model(cfg), {}
    model[0].register_forward_hook(lambda *call: seen.update(x=call[-1]))
    for batch in batches:
        with step(model):
            y = model(batch)
            (slope,) = torch.autograd.grad(y[0, 0, 1, 1], seen["x"])
    return y.detach(), slope


def _model(cfg: DictConfig) -> nn.Sequential:
    """Return a convolution and the config's normalizer behind it, its window open."""
    import torch
    from torch import nn

    from normrepro.norms import convert

    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS))
    wide = cfg.norm.across_batch
    norm = OmegaConf.to_container(cfg.norm, resolve=True)
    example = torch.zeros(2, 3, PIXELS + 2, PIXELS + 2)
    model = convert(
        model,
        norm,
        group=cfg.batch.norm if wide else None,
        replicas=cfg.batch.devices if wide else 1,
        example=example,
    ).double()
    model[1].run_length = 1000  # for layers with a schedule
    if hasattr(model[1], "burn_in"):
        model[1].burn_in = 0
    return model

"""Checkpoints: atomic, verified, and independent of the number of processes that wrote them.

A run's directory holds `last.pt` and, while it trains, `previous.pt`, the one before. A file is
written beside its place, flushed to the disk and renamed, so it is whole or absent; what a disk
does to it later shows in the CRC-32 that zip files carry for each entry. Files are read with
`weights_only=True`.
"""

import errno
import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normrepro.distributed import Ranks
from normrepro.norms import Normalizer

log = logging.getLogger("normrepro")
NAMES = ("last.pt", "previous.pt")
HOLDS = {"run", "config", "data", "shape", "threads", "kernels", "progress", "model"}
FULL = (errno.ENOSPC, errno.EDQUOT)


def save(folder: Path, state: dict[str, Any], make_room: bool = False) -> None:
    """Write `last.pt`; the checkpoint that stood there becomes `previous.pt`.

    Args:
        folder: The run's directory; made anew where somebody removed it.
        state: What to write.
        make_room: Give up `previous.pt` where the disk is full.

    Raises:
        OSError: It cannot be written; what stood there stands there still.
    """
    last, previous, fresh = folder / "last.pt", folder / "previous.pt", folder / ".last.pt.new"
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(state, content)  # torch's own writer turns a full disk into an internal error
    try:
        _write(fresh, content.getbuffer())
    except OSError as error:
        if not make_room or error.errno not in FULL or not (last.exists() and previous.exists()):
            raise
        previous.unlink()
        _write(fresh, content.getbuffer())
    if last.exists():
        os.replace(last, previous)
    os.replace(fresh, last)


def _write(path: Path, content: memoryview) -> None:
    """Write a file down to the disk, or leave none."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        OSError, ValueError: It is not there, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("packed entries, which torch does not write")  # a bomb, perhaps
            broken = archive.testzip()
        if broken:
            raise ValueError(f"wrong checksum in {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not state.keys() >= HOLDS:
            raise ValueError("it is no checkpoint of a run")
        return state
    except OSError:
        raise
    except Exception as error:  # zip, pickle and torch each have their own
        raise ValueError(f"{path} is damaged: {error}") from error


def latest(folder: Path) -> dict[str, Any] | None:
    """Return the newest readable checkpoint of a run, or None; what is passed over is said."""
    for name in NAMES:
        path = folder / name
        if not path.exists():
            continue
        try:
            state = read(path)
        except (OSError, ValueError) as error:
            log.warning("%s; falling back to what was saved before", error)
            continue
        return state
    return None


def finish(folder: Path) -> None:
    """Keep one checkpoint of a run that has ended."""
    (folder / "previous.pt").unlink(missing_ok=True)


# -- running state of replicas: (devices, ...) in a file, (R, ...) or (...) in a process -----------


def model_state(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """Collect a model's state_dict with all devices' running state; every process must call it."""
    state = dict(model.state_dict())
    for key, layer, name in _replica_entries(model):
        state[key] = ranks.gather(layer.state(name))
    return state


def load_model_state(model: nn.Module, state: dict[str, Tensor], ranks: Ranks) -> None:
    """Give a model its weights, and its replicas the state of their devices."""
    state = dict(state)
    for key, layer, _ in _replica_entries(model):
        mine = state[key][ranks.rank * layer.replicas : (ranks.rank + 1) * layer.replicas]
        state[key] = mine if layer.replicas > 1 else mine[0]
    model.load_state_dict(state)


def _replica_entries(model: nn.Module) -> list[tuple[str, Normalizer, str]]:
    return [
        (f"{prefix}.{name}" if prefix else name, layer, name)
        for prefix, layer in model.named_modules()
        if isinstance(layer, Normalizer)
        for name in layer.replica_buffers
    ]

"""A decoding worker that the system kills: a readable end, and the next start goes on."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import command, environment, only_run, result, same_bits, weights
from tests.photos import make_photos


def run_of(root: Path, photos: Path, *more: str) -> list[str]:
    return [
        "data=folder",
        f"data.root={photos}",
        "data.size=16",
        "data.workers=1",
        "model=resnet_digits",
        "model.build.depth=8",
        "model.build.width=4",
        "recipe=digits",
        "recipe.augment=standard",
        "recipe.epochs=25",
        "batch.total=8",
        "run.save_every=0",
        f"run.root={root}",
        *more,
    ]


def children(pid: int) -> list[int]:
    """The decoding workers of a run, by /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers by /proc")
def test_a_killed_worker_ends_the_run_readably_and_the_next_start_goes_on(tmp_path):
    photos = make_photos(tmp_path / "photos")
    (photos / "train" / "ape" / "2.JPEG").write_bytes(b"")
    whole = command(run_of(tmp_path / "whole", photos))
    subprocess.run(whole, env=environment(), check=True, capture_output=True, timeout=200)
    killed = command(run_of(tmp_path / "killed", photos))
    child = subprocess.Popen(killed, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("*/previous.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for worker in children(child.pid):
        os.kill(worker, signal.SIGKILL)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 2, said
    assert "a decoding process died" in said
    assert "data.workers=" in said
    assert "Traceback" not in said
    done = subprocess.run(killed, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "goes on at step" in done.stderr
    ends = [only_run(tmp_path / name) for name in ("whole", "killed")]
    assert same_bits(weights(ends[0]), weights(ends[1]))
    assert result(ends[0]) == result(ends[1])
    assert any("could not be read" in note for note in result(ends[0])["notes"])
    assert any(row.get("skipped_images") == 1 for row in result(ends[0])["history"])

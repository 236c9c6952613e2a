"""How far a run has come, for a person at a terminal or for the driver that started it."""

import json
import os
import signal
import time
from types import TracebackType

from tqdm import tqdm

from normrepro.distributed import Ranks

PIPE = "NORMREPRO_PROGRESS_FD"  # a file descriptor that wants JSON lines instead of a bar
EVERY = 0.2  # seconds


class Progress:
    """A bar of steps with images per second and the time left; silent on ranks other than 0."""

    def __init__(self, ranks: Ranks, steps: int) -> None:
        self.steps, self.first, self.last_time = steps, ranks.first, 0.0
        self.pipe = int(os.environ[PIPE]) if ranks.first and os.environ.get(PIPE) else None
        self.bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        if self.first and self.pipe is None:
            self.bar = tqdm(total=self.steps, unit="step", disable=None, dynamic_ncols=True)
        return self

    def start(self, step: int) -> None:
        """Begin at a step; more than 0 after a resume."""
        self.begun, self.begin = time.monotonic(), step
        if self.bar is not None:
            self.bar.update(step)
            self.bar.initial = step

    def update(self, step: int, images: int, epoch: int) -> None:
        """Tell that `step` steps of `images` images each are done."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(1)
        if now - self.last_time < EVERY and step < self.steps:
            return
        self.last_time = now
        rate = (step - self.begin) * images / max(now - self.begun, 1e-9)
        if self.bar is not None:
            self.bar.set_postfix_str(f"epoch {epoch}, {rate:.0f} images/s", refresh=False)
        if self.pipe is not None:
            line = {"step": step, "steps": self.steps, "epoch": epoch, "images_per_second": rate}
            try:
                os.write(self.pipe, (json.dumps(line) + "\n").encode())
            except OSError:  # the driver was killed, and what it started ends as when asked to
                self.pipe = None
                os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()

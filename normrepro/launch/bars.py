"""The driver's progress bars: one for the table, one for each run under way."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

LINE = "{{desc}} |{{bar}}| {text}"  # tqdm would put a comma before a postfix


class Bars:
    """Bars for a table of runs; without a terminal only one line per ended run."""

    def __init__(self, title: str, total: int, done: int, jobs: int) -> None:
        """Begin with so many of all runs done, and room for so many side by side."""
        self.title, self.total, self.before, self.done = title, total, done, done
        self.ended, self.made, self.started = 0, 0.0, 0.0
        self.told: dict[int, Mapping[str, float]] = {}
        self.begun: dict[int, float] = {}  # where a slot's run began; more than 0 after a resume
        self.quiet = not sys.stderr.isatty()
        self.table = self._bar(0, total=max(total, 1))
        self.runs = [self._bar(slot + 1, total=1) for slot in range(jobs)]

    def _bar(self, position: int, **options: object) -> tqdm:
        """Make one bar that is redrawn only when asked."""
        return tqdm(
            position=position,
            leave=False,
            disable=self.quiet,
            dynamic_ncols=True,
            bar_format=LINE.format(text=""),
            **options,
        )

    def show(self, slot: int, run: str, told: Mapping[str, float]) -> None:
        """Show what the run of a slot told last; nothing yet while it starts."""
        self.told[slot] = told
        if told and slot not in self.begun:
            self.begun[slot] = fraction(told)
            self.started = self.started or time.monotonic()  # imports and data are no measure
        bar, share = self.runs[slot], fraction(told)
        bar.n = share
        bar.set_description_str(f"  {run}", refresh=False)
        epoch, speed = told.get("epoch", 0), told.get("images_per_second", 0.0)
        text = f"epoch {epoch}, {speed:,.0f} images/s" if told else "starting"
        bar.bar_format = LINE.format(text=text)

    def skip(self) -> None:
        """Count a run that another process has made."""
        self.done += 1
        self.before += 1

    def end(self, slot: int, counted: bool, over: bool = True) -> None:
        """Take a slot's run off: counted if it left a record, over if it is not tried again."""
        self.told.pop(slot, None)
        begun = self.begun.pop(slot, 0.0)
        self.made += (1 - begun) * counted
        self.ended += over
        self.done += counted
        self.runs[slot].reset()
        self.runs[slot].set_description_str("  ", refresh=False)
        self.runs[slot].bar_format = LINE.format(text="")

    def refresh(self) -> None:
        """Redraw all bars."""
        speed = sum(told.get("images_per_second", 0.0) for told in self.told.values())
        self.table.n = self.done + sum(map(fraction, self.told.values()))
        self.table.set_description_str(f"{self.title} {self.done}/{self.total} runs", refresh=False)
        self.table.bar_format = LINE.format(text=f"{speed:,.0f} images/s, ETA {self.eta()}")
        for bar in (self.table, *self.runs):
            bar.refresh()

    def eta(self) -> str:
        """Return the time that is left, by the runs and parts of runs made so far."""
        under_way = sum(map(fraction, self.told.values()))
        made = self.made + under_way - sum(self.begun.values())
        if made <= 0 or not self.started:
            return "?"
        left = self.total - self.before - self.ended - under_way
        return tqdm.format_interval(left * (time.monotonic() - self.started) / made)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Take the bars off the screen."""
        for bar in (*self.runs, self.table):
            bar.close()


def fraction(told: Mapping[str, float]) -> float:
    """Return how much of a run is done."""
    return told["step"] / told["steps"] if told.get("steps") else 0.0

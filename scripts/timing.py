"""Times and peak memory of runs side by side, for bench.py."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler, asked for peak memory, talks a lot

import torch

Run = Callable[[], None]
WARM = 4  # pairs that are not counted: allocations, the windows of the layers


def seconds(run: Run, device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def compare(runs: list[Run], pairs: int, device: str) -> list[float]:
    """Return the median ratio of each run's time to the first's."""
    return [statistics.median(ratios(run, runs[0], pairs, device)) for run in runs[1:]]


def ratios(run: Run, base: Run, pairs: int, device: str) -> Iterator[float]:
    """Yield the ratios of time of two runs, each first in every other pair."""
    for i in range(-WARM, pairs):
        first, second = (seconds(one, device) for one in ((base, run) if i % 2 else (run, base)))
        if i >= 0:
            yield second / first if i % 2 else first / second


def peak(run: Run, device: str) -> float:
    """Return the MB that a run holds at its worst moment, beyond what was held before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = accumulate(e["args"]["Bytes"] for e in events if e["name"] == "[memory]")
    return max(held) / 1e6

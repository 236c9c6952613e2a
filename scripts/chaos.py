"""Kill runs, ranks, writes and drivers at random moments; what they end with must not differ.

    python scripts/chaos.py --kills 200

After a few kills the same command is started again until it ends. Weights, optimizer state,
records and rendered tables are then compared with those of an undisturbed run, bit by bit; only
clocks may differ. The exit code is 1 where a bit is lost.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

from scripts import faults  # noqa: E402
from scripts.victims import Kind, kinds  # noqa: E402

PATIENCE = 600  # seconds


def torment(kind: Kind, kills: int, draw: random.Random, folder: Path) -> None:
    """Kill so many times, in episodes of a few kills, and compare at the end of each."""
    folder.mkdir(parents=True)
    wanted, _, writes = undisturbed(kind, folder / "once")
    again, span, _ = undisturbed(kind, folder / "twice")
    if again != wanted:
        raise SystemExit(f"{kind.name}: two undisturbed runs differ")
    while kind.kills < kills:
        place = folder / f"after-{kind.kills}"
        place.mkdir()
        for _ in range(draw.randint(1, min(4, kills - kind.kills))):
            kind.kills += (
                die_in_write(kind, place, writes, draw)
                if kind.planted
                else die(kind, place, span, draw)
            )
        ends = end(kind.start(place))
        if any(ends) or kind.left(place) != wanted:
            kind.lost.append((place / "log").read_text()[-2000:])
        shutil.rmtree(place, ignore_errors=True)
        print(f"{kind.name}: {kind.kills}/{kills}, {len(kind.lost)} lost", flush=True)


def undisturbed(kind: Kind, folder: Path) -> tuple[Any, float, int]:
    """Return what an undisturbed run leaves, the seconds it takes, and its number of writes."""
    folder.mkdir()
    begin, count = time.monotonic(), folder / "writes"
    if any(end(kind.start(folder, partial(faults.count_writes, count)))):
        raise SystemExit(f"{kind.name} fails undisturbed: {(folder / 'log').read_text()}")
    writes = int(count.read_text()) if count.exists() else 0
    return kind.left(folder), time.monotonic() - begin, writes


def die(kind: Kind, folder: Path, span: float, draw: random.Random) -> bool:
    """Kill one of the processes at a moment of the run; returns whether it was still there."""
    processes = kind.start(folder)
    victim = draw.choice(processes)
    victim.join(draw.uniform(0, span))
    alive = victim.exitcode is None
    victim.kill()
    end(processes)
    return alive


def die_in_write(kind: Kind, folder: Path, writes: int, draw: random.Random) -> bool:
    """Let the process die in one of its writes; often in the last ones, which are the results."""
    number = draw.randint(1, writes) if draw.random() < 0.7 else draw.randint(writes - 1, writes)
    how = draw.choice(["before", "half", "after"])
    (code,) = end(kind.start(folder, partial(faults.die_at, number, how, draw.random())))
    for line in (folder / "log").read_text().splitlines()[-1:] if code else []:
        kind.places[line.rpartition(" ")[2].strip(".").split(".")[0]] += 1
    return code < 0


def end(processes: list[BaseProcess]) -> list[int]:
    """Wait for processes, and end what does not end."""
    for process in processes:
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


# -- the report ------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--kills", type=int, default=200)
    result.add_argument("--seed", type=int, help="of the moments; default: another each time")
    return result


def main() -> None:
    args = parser().parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    begin, found = time.monotonic(), kinds()
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(found):
            kills = max(1, round(kind.share * args.kills))
            torment(kind, kills, random.Random(f"{seed} {kind.name}"), Path(folder) / str(number))
    print(*report(found, seed, time.monotonic() - begin), sep="\n")
    sys.exit(1 if any(kind.lost for kind in found) else 0)


def report(found: list[Kind], seed: int, seconds: float) -> Iterator[str]:
    yield "| killed | kills | ended with other bits |\n|---|---|---|"
    for kind in found:
        where = ", ".join(f"{name} {count}" for name, count in kind.places.most_common())
        name = f"{kind.name} ({where})" if where else kind.name
        yield f"| {name} | {kind.kills} | {len(kind.lost)} |"
    yield f"\n{sum(kind.kills for kind in found)} kills in {seconds:.0f} s, seed {seed}"
    yield from (text for kind in found for text in kind.lost)


if __name__ == "__main__":
    main()

"""Made-up records for the tests of tables, report and driver; they never enter results/."""

from normrepro.record import Record
from normrepro.tables import Cell, Table

SEEDS = 3
# error by row and seed: bn_small is the worst at seeds 0 and 2, brn_small at seed 1
ERRORS = {
    "bn_regular": [2.0, 3.0, 4.0],
    "bn_small": [8.0, 5.0, 9.0],
    "brn_small": [7.0, 6.0, 4.0],
    "mabn_small": [2.5, 3.5, 3.5],
}


def record(cell: Cell, error: float | None, scale: str = "proxy", seconds: float = 10.0) -> Record:
    history = [
        {"epoch": epoch, "step": epoch * 18, "lr": 0.1, "train_loss": 1.0, "loss": 1.0}
        | {"error": (error or 90.0) + 2 - epoch, "images_per_second": 1000.0, "seconds": 5.0}
        for epoch in (1, 2)
    ]
    best = None if error is None else min(row["error"] for row in history)
    made = {
        "run": cell.run,
        "status": "finished",
        "scale": scale,
        "config": {"seed": cell.seed, "run": {"threads": 1}},
        "metrics": {"error": error, "best_error": best, "loss": 1.0, "train_loss": 1.0},
        "history": history,
        "data": {"classes": 10, "train": 1200, "val": 597},
        "environment": {"commit": "c0ffee", "dirty": False, "torch": "2.13.0", "threads": 1},
        "seconds": seconds,
        "notes": [],
    }
    if error is None:
        made |= {"status": "diverged", "metrics": {}, "diverged": {"step": 20, "epoch": 2}}
    return made


def records(table: Table, scale: str = "proxy", seeds: int = SEEDS) -> dict[str, Record]:
    cells = table.cells(scale, seeds)
    return {cell.run: record(cell, ERRORS[cell.row][cell.seed], scale) for cell in cells}

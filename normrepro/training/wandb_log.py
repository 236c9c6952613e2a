"""The mirror of a run in Weights & Biases: one W&B run per run, never the source of a number.

Offline is the default: W&B's files then lie in the run's directory, for `wandb sync` later. With an
account (an API key in the environment or in ~/.netrc) it logs online. Whatever goes wrong online
costs one warning; the run is then mirrored offline, whole, so that `wandb sync` can still send it.
"""

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from omegaconf import DictConfig

from normrepro import record
from normrepro.config import run_dir, run_name
from normrepro.distributed import Ranks
from normrepro.training import build

log = logging.getLogger("normrepro")
Row = dict[str, Any]


class Mirror:
    """Logs a run's history, row by row.

    An offline folder cannot be continued by W&B, so a resumed run writes a new one from the history
    in its checkpoint and removes the old: one folder in the end, with every row once.
    """

    def __init__(self, cfg: DictConfig, ranks: Ranks, history: list[Row]) -> None:
        self.cfg, self.history, self.summary = cfg, list(history), Row()
        self.run: Any = None
        self.mode = choose_mode(cfg.run.wandb) if ranks.first else "disabled"

    def __enter__(self) -> "Mirror":
        if self.mode != "disabled":
            self._guard(self._open)
        return self

    def log(self, row: Row) -> None:
        """Log one epoch's row of history; lists stay in the record."""
        self.history.append(row)
        if self.run is not None:
            self._guard(lambda: self._send(row))

    def finish(self, result: Row) -> None:
        """Add the outcome: final metrics, status, commit."""
        commit = result["environment"].get("commit")
        self.summary = {"status": result["status"], "commit": commit, **result["metrics"]}
        if self.run is not None:
            self._guard(lambda: self.run.summary.update(self.summary))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self.run is not None:  # an unclosed W&B run would swallow the next one
            open_now = self.run
            self._guard(lambda: self.run.finish(exit_code=0 if kind is None else 1))
            if self.run is open_now:  # else it failed online, and a run offline took its place
                self.run = None

    def _send(self, row: Row) -> None:
        numbers = {k: v for k, v in row.items() if not isinstance(v, list)}
        self.run.log(numbers, step=row["step"])

    def _open(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that wandb imports
            import wandb

            folder = run_dir(self.cfg)
            shutil.rmtree(folder / "wandb", ignore_errors=True)  # what is written now has it all
            self.run = wandb.init(
                project=self.cfg.run.project,
                dir=str(folder),
                id=run_name(self.cfg),
                name=run_name(self.cfg),
                mode=self.mode,
                resume="allow" if self.mode == "online" else None,
                config=build.plain(self.cfg) | {"commit": record.environment().get("commit")},
                **labels(self.cfg),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", "20")),
                    finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", "120")),
                    finish_timeout_raises=True,
                    x_disable_stats=True,
                    disable_git=True,
                    disable_code=True,
                ),
            )
            done = self.run.step if self.mode == "online" else -1  # rows that W&B has already
            for row in self.history:
                if row["step"] > done:
                    self._send(row)
            self.run.summary.update(self.summary)

    def _guard(self, action: Callable[[], object]) -> None:
        """Do something with W&B; what fails online is done anew offline."""
        try:
            action()
        except Exception as error:
            online = self.mode == "online"
            after = f"`wandb sync {run_dir(self.cfg)}/wandb/offline-*` sends it later"
            log.warning(
                "W&B fails (%s: %s); the run goes on without it%s",
                *(type(error).__name__, error, f", and {after}" if online else ""),
            )
            run, self.run = self.run, None
            self.mode = "offline" if online else "disabled"
            with contextlib.suppress(Exception):
                if run is not None:
                    run.finish(exit_code=1)
            with contextlib.suppress(Exception):
                sys.modules["wandb"].teardown()  # its service keeps the id of a run that failed
            if online:
                self._guard(self._open)


def labels(cfg: DictConfig) -> dict[str, Any]:
    """Return W&B's group, job type and tags: paper, table and cell where the driver set them."""
    paper, table, cell = cfg.run.paper, cfg.run.table, cfg.run.cell
    group = "/".join(part for part in (paper, table, cfg.scale.name) if part)
    words = (paper, table, cell, cfg.scale.name, cfg.norm.name, cfg.data.name)
    tags = [tag[:64] for tag in dict.fromkeys(words) if tag]  # W&B takes 64 letters
    return {"group": group, "job_type": cell or cfg.norm.name, "tags": tags}


def choose_mode(wanted: str) -> str:
    """Return online, offline or disabled: WANDB_MODE, then `run.wandb`, then the account."""
    mode = os.environ.get("WANDB_MODE") or wanted
    if mode in ("dryrun", "dummy"):  # W&B's own older words
        return {"dryrun": "offline", "dummy": "disabled"}[mode]
    return mode if mode != "auto" else ("online" if has_account() else "offline")


def has_account() -> bool:
    """Tell whether an API key is configured, without importing wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(host) is not None
    return False

"""The mirror of a run in Weights & Biases: one W&B run per run, never the source of a number.

Offline is the default: W&B's files then lie in the run's directory, for `wandb sync` later. With an
    account (an API key in the
environment or in ~/.netrc) it logs online. Whatever goes wrong with W&B costs one warning and
nothing else.
"""

import contextlib
import logging
import os
import shutil
import warnings
from types import TracebackType
from typing import Any

from omegaconf import DictConfig

from normrepro import build, record
from normrepro.config import run_dir, run_name
from normrepro.distributed import Ranks

log = logging.getLogger("normrepro")
Row = dict[str, Any]


class Mirror:
    """Logs a run's history, row by row.

    An offline folder cannot be continued by W&B, so a resumed run writes a new one from the history
    in its
    checkpoint and removes the old: one folder in the end, with every row once.
    """

    def __init__(self, cfg: DictConfig, ranks: Ranks, history: list[Row]) -> None:
        self.cfg, self.history = cfg, list(history)
        self.run: Any = None
        self.mode = choose_mode(cfg.run.wandb) if ranks.first else "disabled"

    def __enter__(self) -> "Mirror":
        if self.mode != "disabled":
            self._guard(self._open)
        return self

    def log(self, row: Row) -> None:
        """Log one epoch's row of history; lists stay in the record."""
        if self.run is not None:
            numbers = {k: v for k, v in row.items() if not isinstance(v, list)}
            self._guard(lambda: self.run.log(numbers, step=row["step"]))

    def finish(self, result: Row) -> None:
        """Add the outcome: final metrics, status, commit."""
        if self.run is None:
            return
        commit = result["environment"].get("commit")
        summary = {"status": result["status"], "commit": commit, **result["metrics"]}
        self._guard(lambda: self.run.summary.update(summary))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.run is not None:  # an unclosed W&B run would swallow the next one
            self._guard(lambda: self.run.finish(exit_code=0 if kind is None else 1))

    def _open(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that wandb imports
            import wandb

            folder = run_dir(self.cfg)
            if self.mode == "offline":
                shutil.rmtree(folder / "wandb", ignore_errors=True)
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
                    x_disable_stats=True,
                    disable_git=True,
                    disable_code=True,
                ),
            )
            done = self.run.step if self.mode == "online" else -1  # rows that W&B has already
            for row in self.history:
                if row["step"] > done:
                    self.log(row)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            log.warning(
                "W&B fails (%s: %s); the run goes on without it", type(error).__name__, error
            )
            run, self.run = self.run, None
            with contextlib.suppress(Exception):
                if run is not None:
                    run.finish(exit_code=1)


def labels(cfg: DictConfig) -> dict[str, Any]:
    """Return W&B's group, job type and tags: paper and table where the driver set them."""
    paper, table = cfg.run.paper, cfg.run.table
    group = "/".join(part for part in (paper, table, cfg.scale.name) if part)
    tags = [tag for tag in (paper, table, cfg.scale.name, cfg.norm.name, cfg.data.name) if tag]
    return {"group": group, "job_type": cfg.norm.name, "tags": tags}


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

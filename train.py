"""Train one run or a sweep of runs. `python train.py --help` is written for a person."""

from __future__ import annotations

import json
import logging
import math
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from normrepro.checks import SaveError
from normrepro.cli import check_command_line, help_page
from normrepro.config import (
    ConfigError,
    check,
    rank,
    register_resolvers,
    run_dir,
    run_name,
    world_size,
)
from normrepro.training import ending, interrupt, lock
from normrepro.training.ending import NOT_SAVED, distributed, end_process, end_together
from normrepro.training.interrupt import Interrupted

log = logging.getLogger("train")
failed: list[str] = []  # the names of a sweep's failed runs


def finished(cfg: DictConfig) -> float | None:
    """Return the metric of a run that is done, or None; a diverged run is done too."""
    path = run_dir(cfg) / "result.json"
    if cfg.run.eval is not None or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise ConfigError(f"{path} is damaged ({broken}): delete it to train again") from broken
    error = record["metrics"].get("error")
    log.info(
        "%s is %s (error %s): nothing to do", run_name(cfg), record.get("status", "finished"), error
    )
    return math.nan if error is None else float(error)


def train(cfg: DictConfig) -> float:
    """Check, then train, unless the run is finished; rank 0 alone holds the run's lock."""
    check(cfg, world_size())
    done = finished(cfg)
    if done is not None:
        return done
    if rank() > 0 or cfg.run.eval is not None:
        return work(cfg)
    with lock.hold(run_dir(cfg), cfg.run.lock, cfg.run.wait):
        done = finished(cfg)  # perhaps by the process that held the lock
        return work(cfg) if done is None else done


def work(cfg: DictConfig) -> float:
    """Train, or evaluate."""
    from normrepro import engine  # here, because torch takes seconds and a typo should not

    try:
        return engine.run(cfg)
    except ConfigError as error:
        if distributed():  # perhaps only this rank lacks the data, and the others wait for it
            end_together(error, run_dir(cfg), 2)
        raise


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def job(cfg: DictConfig) -> float:
    """One run; what goes wrong in one run of a sweep does not stop the others."""
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        return train(cfg)
    except lock.HeldError as error:
        log.error("%s: nothing to do here (run.wait=600 waits for it)", error)
        lock.tell_driver(str(error))
        if world_size() > 1:
            end_process(lock.HELD)
        if not sweep:
            raise SystemExit(lock.HELD) from None
        failed.append(run_name(cfg))
        raise
    except Interrupted as error:  # a sweep ends here too
        log.warning("%s: %s; the same command goes on", run_name(cfg), error)
        if distributed():
            end_process(interrupt.RESUME)
        raise SystemExit(interrupt.RESUME) from None
    except ConfigError as error:
        log.error("error: %s", error)
        if not sweep:
            raise SystemExit(2) from None
        failed.append(run_name(cfg))
        raise
    except SaveError as error:
        if distributed():
            end_together(error, run_dir(cfg), NOT_SAVED)
        log.error("error: %s", error)
        if not sweep:
            raise SystemExit(NOT_SAVED) from None
        failed.append(run_name(cfg))
        raise
    except Exception as error:
        if distributed() or world_size() > 1:
            end_together(error, run_dir(cfg), 1)
        if sweep:
            log.exception("%s failed", run_name(cfg))
            failed.append(run_name(cfg))
        raise


def main() -> None:
    """Check the command line and hand it to Hydra."""
    interrupt.exit_before_training()
    ending.begin()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_page())
        return
    flags = [word for word in sys.argv[1:] if word in ("-m", "--multirun")]
    # Hydra reads flags only before the overrides; people write them anywhere.
    sys.argv[1:] = [*flags, *(word for word in sys.argv[1:] if word not in flags)]
    try:
        sweep = check_command_line(sys.argv[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if sweep:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # lets the first failure through to the lines below
    try:
        job()
    except Exception:
        if not failed:
            raise
        sys.exit(f"error: {len(failed)} of the sweep's runs failed: {', '.join(failed)}")


register_resolvers()

if __name__ == "__main__":
    main()

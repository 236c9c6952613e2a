"""How a process ends that others work with: soon, on all ranks, and with one error for all.

A rank that raises must end its process, since the others wait for it in a collective. They find it
gone and end too; which of them tells why is settled by a counter in the processes' common store.
"""

import logging
import os
import sys
from typing import NoReturn

from normrepro.config import rank

log = logging.getLogger("train")
NOT_SAVED = 74  # EX_IOERR of sysexits.h: make room, and the same command goes on
LOST = ("gloo", "Gloo", "NCCL", "Connection closed", "Connection reset", "ProcessGroup")


def distributed() -> bool:
    """Whether other processes wait for this one; never imports torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return False
    return bool(torch.distributed.is_initialized())


def end_process(code: int) -> NoReturn:
    """Die at once: the other ranks sit in a collective until they see this one's end."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_together(error: BaseException, run: str, code: int) -> NoReturn:
    """Tell the job's error, unless another rank has told it already, and end.

    Args:
        error: What this rank met.
        run: The run's name, for the message.
        code: Exit code.
    """
    if not told():
        if lost_others(error):
            reason = str(error).strip().splitlines()[0]
            log.error(
                "error: rank %d lost another process of %s (it ended, or did not answer within "
                "run.timeout): %s. The same command goes on from the last checkpoint",
                *(rank(), run, reason),
            )
        else:
            readable = isinstance(error, ValueError | OSError) or code != 1
            log.error(
                "error: rank %d of %s: %s", rank(), run, error, exc_info=None if readable else error
            )
    end_process(code)


def lost_others(error: BaseException) -> bool:
    """Tell whether a collective failed because of the other side of it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)


def told() -> bool:
    """Tell whether another rank has told the job's error; if not, this one must."""
    if not distributed():
        return False
    from torch.distributed import distributed_c10d as c10d

    try:
        return c10d._get_default_store().add("normrepro/told", 1) > 1
    except Exception:  # the store is gone with the process that held it
        return False

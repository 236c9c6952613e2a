"""How a process ends that others work with: soon, on all ranks, and with one error for all.

A rank that raises must end its process, since the others wait for it in a collective. They find it
gone and end too; which of them tells why is settled by a file in the run's directory, whose first
toucher tells. (torch's store of keys would do, were it not gone with the rank that holds it.)
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from normrepro.checks import DisagreementError
from normrepro.config import rank

log = logging.getLogger("train")
begun = time.time()
NOT_SAVED = 74  # EX_IOERR of sysexits.h: make room, and the same command goes on
LOST = ("gloo", "Gloo", "NCCL", "Connection closed", "Connection reset", "ProcessGroup")


def begin() -> None:
    """Note when this process's work began: what forked it may have imported this long ago."""
    global begun
    begun = time.time()


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


def end_together(error: BaseException, folder: Path, code: int) -> NoReturn:
    """Tell the job's error, unless another rank has told it already, and end.

    Args:
        error: What this rank met.
        folder: The run's directory.
        code: Exit code.
    """
    silent = isinstance(error, DisagreementError) and rank() > 0
    if not silent and not told(folder):
        if lost_others(error):
            reason = str(error).strip().splitlines()[0]
            log.error(
                "error: rank %d lost another process of %s (it ended, or did not answer within "
                "run.timeout): %s. The same command goes on from the last checkpoint",
                *(rank(), folder.name, reason),
            )
        else:
            readable = isinstance(error, ValueError | OSError) or code != 1
            log.error(
                "error: rank %d of %s: %s",
                *(rank(), folder.name, error),
                exc_info=None if readable else error,
            )
    end_process(code)


def lost_others(error: BaseException) -> bool:
    """Tell whether a collective failed because of the other side of it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)


def told(folder: Path) -> bool:
    """Tell whether another rank has told the job's error; if not, this one must.

    Args:
        folder: The run's directory.
    """
    path = folder / ".told"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        old = path.stat().st_mtime < begun  # of a job before this one
        os.utime(path)
        return not old
    except OSError:  # too many words are better than none
        return False
    return False

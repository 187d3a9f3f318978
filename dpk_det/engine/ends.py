"""How commands and processes end: the process with the error prints it, the others are silent."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from dpk_det.engine.signals import INTERRUPTED, Stopped, parent_is_gone
from dpk_det.errors import UserError

# Keys in the store that all processes share.
_LEFT, _TOLD = "dpk_det/left", "dpk_det/told"
_SECONDS_FOR_THE_OTHERS = 2.0


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End a command with one line and an exit status, without a traceback, if the cause is no bug.

    This covers a user's mistake, a signal that stopped a training, and Ctrl-C. One process prints
    the line. The others notice that it left, and end silently with its status.
    """
    try:
        yield
    except UserError as e:
        _tell(e)
        sys.exit(e.status)
    except Stopped as e:
        sys.exit(_leave_stopped(e))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ProcessExitedException as e:  # that process has printed the reason
        sys.exit(e.exit_code)
    except RuntimeError:  # perhaps a collective failed, because its partner has left
        status = _status_of_others()
        if status:
            sys.exit(status)
        raise


@contextlib.contextmanager
def no_traceback_of_mistakes() -> Iterator[None]:
    """Keep Detectron2's training loop from logging tracebacks of errors that are no bugs."""

    def is_bug(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RuntimeError) and _status_of_others():
            return False  # a collective failed, because its partner has left
        return not isinstance(error, UserError)

    logger = logging.getLogger("detectron2.engine.train_loop")
    logger.addFilter(is_bug)
    try:
        yield
    finally:
        logger.removeFilter(is_bug)


def _tell(error: UserError) -> None:
    """Print a mistake. If several processes make mistakes, print each once, with its ranks."""
    _tell_torchrun(error)
    store = _store()
    if store is not None and dist.get_world_size() > 1:
        try:
            return _tell_among_others(error, store)
        except RuntimeError:  # the store is gone
            pass
    print(f"error: {error}", file=sys.stderr, flush=True)


def _tell_among_others(error: UserError, store: dist.Store) -> None:
    # The first process that arrives here waits a little for the others and prints for all. The
    # others wait for it, because torchrun ends all processes when the first one ends.
    size, key = dist.get_world_size(), "dpk_det/mistake/{}".format
    store.set(_LEFT, str(error.status))
    store.set(key(dist.get_rank()), str(error))
    if store.add("dpk_det/mistakes", 1) > 1:
        return _wait(store, [_TOLD], 2 * _SECONDS_FOR_THE_OTHERS)
    _wait(store, [key(rank) for rank in range(size)], _SECONDS_FOR_THE_OTHERS)
    ranks: dict[str, list[str]] = {}
    for rank in range(size):
        if store.check([key(rank)]):
            ranks.setdefault(store.get(key(rank)).decode(), []).append(str(rank))
    for sentence, who in ranks.items():
        where = "" if len(who) == size else f" (rank {', '.join(who)})"
        print(f"error{where}: {sentence}", file=sys.stderr, flush=True)
    store.set(_TOLD, "")


def _wait(store: dist.Store, keys: list[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not store.check(keys) and time.monotonic() < until:
        time.sleep(0.02)  # store.wait() prints a long report on a timeout


def _leave_stopped(stopped: Stopped) -> int:
    """Print once why all stop, unless another's mistake is the reason. Return the exit status."""
    status, speaks = _status_of_others(), comm.is_main_process()
    if status not in (0, stopped.code):
        return status
    with contextlib.suppress(RuntimeError):
        if (store := _store()) is not None:
            store.set(_LEFT, str(stopped.code))
            speaks = store.add("dpk_det/stopped", 1) == 1
    if speaks:
        print(stopped.message, file=sys.stderr, flush=True)
    return stopped.code


def _status_of_others() -> int:
    """Return the exit status that another process has left with, or 0 if none is recorded."""
    with contextlib.suppress(RuntimeError):  # the store is gone with its process
        store = _store()
        if store is not None and store.check([_LEFT]):
            return int(store.get(_LEFT))
    return 0


def _store() -> dist.Store | None:
    # All processes share this store. torchrun hosts it, so the store is gone if torchrun is gone.
    if not dist.is_initialized() or parent_is_gone():
        return None
    return dist.distributed_c10d._get_default_store()  # torch has no public way to it


def _tell_torchrun(error: UserError) -> None:
    # torchrun ends its failure report with this file's text, or with debugging advice without one.
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": f"error: {error}", "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}))

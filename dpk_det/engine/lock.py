"""A lock that allows only one training per folder."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import portalocker

from dpk_det.errors import BusyError

# Some network file systems do not support locks and return one of these.
_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def training_lock(folder: str | Path) -> Iterator[None]:
    """Lock the folder that a training writes into. If the process dies, the lock ends too.

    Only the first process of the training takes the lock, before it writes anything. Commands that
    start trainings take no lock: a training that finds its folder in use exits with
    ``errors.BUSY``, and can be started again when the other training has ended.

    Args:
        folder: the OUTPUT_DIR; created if it is absent.

    Raises:
        BusyError: when another training holds the lock.
        OSError: when the folder cannot be created or written into.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException as e:
            if getattr(e.args[0], "errno", None) not in _NO_LOCKS_HERE:
                raise BusyError(
                    f"{folder} is being trained by another process: wait for its end, end it, or "
                    "choose another OUTPUT_DIR."
                ) from e
            logging.getLogger("dpk_det").warning(
                "%s cannot be locked (%s): see to it that no other training writes into it.",
                folder,
                e,
            )
        # Workers that a killed training forked live on for seconds and must not keep the lock.
        os.register_at_fork(after_in_child=file.close)
        yield

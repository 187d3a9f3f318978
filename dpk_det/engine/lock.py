"""One folder, one training."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import portalocker

from dpk_det.errors import BusyError

# what some network file systems answer
_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def training_lock(folder: str | Path) -> Iterator[None]:
    """Hold the folder that a training writes into; the lock ends with the process, however it ends.

    Only the training itself takes it, in its first process and before it writes anything. Whoever
    starts trainings takes no lock: a training that finds its folder in use exits with
    ``errors.BUSY``, and can be started again when the other one has ended.

    Args:
        folder: the OUTPUT_DIR; made where it is absent.

    Raises:
        BusyError: when another training holds it.
        OSError: when the folder cannot be made or written into.
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
        # a killed training's data loader workers, its forks, live on for seconds
        os.register_at_fork(after_in_child=file.close)
        yield

"""Files that are complete or absent: written beside, flushed to disk, renamed."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dpk_det.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; what was written there takes the place of ``path`` at the end.

    A kill at any moment, or an exception, leaves ``path`` as it was. The path that is given has the
    same suffix, in the same folder, which is made where it is absent. ::

        with whole_file("report.png") as partial:
            figure.savefig(partial)

    Raises:
        UserError: when the disk is full, or the file cannot be written for another reason of the
            system's. Exceptions of other kinds pass.
    """
    path = Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _flush(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _flush(path.parent)
    except OSError as e:
        raise UserError(
            f"{path} could not be written ({e.strerror or e}): make room on the disk or choose "
            "another folder, and call again; what was there before is kept."
        ) from e


@contextlib.contextmanager
def no_room_ends(folder: str | Path) -> Iterator[None]:
    """Around code that writes into a folder by others' functions: say what the system refuses.

    Raises:
        UserError: for an OSError that names a file in the folder, or is one of a disk that is full
            or cannot be written. Others pass.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        e = _refusal(error)
        if e is None:
            raise
        place = Path(folder).absolute()
        file = Path(e.filename).absolute() if isinstance(e.filename, str) else None
        within = file is not None and (file == place or place in file.parents)
        if not within and e.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"{file if within else place} could not be written ({e.strerror or e}): make room on "
            "the disk or choose another folder, and call again; what was saved before is kept."
        ) from e


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a text or bytes to a file, as :func:`whole_file` does.

    Raises:
        UserError: as there.
    """
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path) as partial:
        partial.write_bytes(data)


def _refusal(error: BaseException | None) -> OSError | None:
    # Detectron2's evaluators call torch.save(), which closes its archive where it could not write,
    # and fails in that with a RuntimeError
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

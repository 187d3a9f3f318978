"""Writes files that are complete or absent: under another name, flushed to disk, then renamed."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dpk_det.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end its file replaces ``path``.

    A kill at any moment, or an exception, leaves ``path`` unchanged. The temporary path has
    the same suffix and folder. A missing folder is created. ::

        with whole_file("report.png") as partial:
            figure.savefig(partial)

    Raises:
        UserError: for an OSError: the disk is full, or the system cannot write the file for
            another reason. Other exceptions pass through.
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
    """Report it in a sentence if a library fails to write into a folder.

    Raises:
        UserError: for an OSError that names a file in the folder, or that says that the disk is
            full or cannot be written. Other errors pass through.
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
    """Write a string or bytes to a file through :func:`whole_file`.

    Raises:
        UserError: as :func:`whole_file` does.
    """
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path) as partial:
        partial.write_bytes(data)


def _refusal(error: BaseException | None) -> OSError | None:
    # Detectron2's evaluators call torch.save(). If it cannot write, it closes its archive, which
    # fails with a RuntimeError; the OSError is the context of that.
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

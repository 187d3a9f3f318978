"""How commands end when they do not end well."""

import contextlib
import difflib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend, in one sentence: what is wrong, where, and what to do.

    Commands print it without a traceback and exit with its ``status``.
    """

    status = 2

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):
            # in a data loader's worker, by torch, which gives the worker's traceback as the message
            message = message.rstrip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(message)


class BusyError(UserError):
    """The folder of a training is used by another one."""

    status = 4


MISTAKE = UserError.status
"""Exit status after a :class:`UserError`."""

STOPPED = 3
"""Exit status of a training that a signal stopped: it has saved, and ``--resume`` goes on."""

BUSY = BusyError.status
"""Exit status of a training whose folder another training is using."""


REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise for values that do not suit them."""


def reason(error: Exception) -> str:
    """An error's message in one line of moderate length; without one, where it arose."""
    message = " ".join(str(error).split())[:300]
    if not message:
        *_, frame = traceback.extract_tb(error.__traceback__) or [None]
        return f"{type(error).__name__} in {frame.name}, {frame.line}" if frame else repr(error)
    # of a KeyError the message is but the key
    return repr(error)[:300] if isinstance(error, LookupError) else message


@contextlib.contextmanager
def mistakes(what: str, remedy: str) -> Iterator[None]:
    """Around what a library does by a user's values: what it raises becomes a sentence.

    Args:
        what: is wrong. remedy: what to do.

    Raises:
        UserError: in place of any of :data:`REFUSALS`.
    """
    try:
        yield
    except UserError:
        raise
    except REFUSALS as e:
        raise UserError(f"{what} ({reason(e).rstrip('.')}): {remedy}.") from e


def check_names(names: Any, what: str) -> None:
    """Check that a list holds texts, each once.

    Raises:
        UserError: naming the first that does not belong there.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{what} is {names!r}: write a list of names.")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{what} names {name} twice: take one of them out.")


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that a wrong one is most like, however it is capitalised; None: none is.

    Args:
        likeness: from 0 (any will do) to 1 (only the same).
    """
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), names, 1, likeness)
    return names[near[0]] if near else None


def find(table: Mapping[str, Any], name: Any, what: str) -> Any:
    """Look a name up, or say which name may have been meant.

    Raises:
        UserError: when the table lacks it.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = nearest(str(name), table)
    hint = f"did you mean '{near}'?" if near else f"choose from {', '.join(sorted(table))}."
    shown = repr(str(name))
    shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
    raise UserError(f"There is no {what} named {shown}: {hint}")

"""Errors that commands report to the user, and their exit statuses."""

import contextlib
import difflib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the user can correct.

    The message says in one sentence what is wrong, where, and what to do. Commands print it without
    a traceback and exit with its ``status``.
    """

    status = 2

    def __init__(self, message: str) -> None:
        if message.startswith("Caught "):
            # from a data loader's worker: torch puts the worker's traceback into the message
            message = message.rstrip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(message)


class BusyError(UserError):
    """Another training is using the folder of this one."""

    status = 4


MISTAKE = UserError.status
"""Exit status after a :class:`UserError`."""

STOPPED = 3
"""Exit status of a training that a signal stopped: it has saved, and ``--resume`` continues it."""

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
"""Exceptions that libraries raise for values they cannot use."""


def reason(error: Exception) -> str:
    """Return an error's message as one short line; without a message, where the error arose."""
    message = " ".join(str(error).split())[:300]
    if not message:
        *_, frame = traceback.extract_tb(error.__traceback__) or [None]
        return f"{type(error).__name__} in {frame.name}, {frame.line}" if frame else repr(error)
    # a KeyError's message is only the key
    return repr(error)[:300] if isinstance(error, LookupError) else message


@contextlib.contextmanager
def mistakes(what: str, remedy: str) -> Iterator[None]:
    """Turn what a library raises for a user's values into a sentence.

    Args:
        what: what is wrong.
        remedy: what to do.

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
    """Check that a list holds only strings, each once.

    Raises:
        UserError: if it holds anything else, or naming the first string that stands twice.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{what} is {names!r}: write a list of names.")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{what} names {name} twice: take one of them out.")


def nearest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the known name most similar to a wrong one, or None. Capitals do not matter.

    Args:
        likeness: least similarity, from 0 (any name) to 1 (only the same name).
    """
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), names, 1, likeness)
    return names[near[0]] if near else None


def find(table: Mapping[str, Any], name: Any, what: str) -> Any:
    """Look up a name; if it is missing, say which name may have been meant.

    Raises:
        UserError: if the table does not have the name.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    near = nearest(str(name), table)
    hint = f"did you mean '{near}'?" if near else f"choose from {', '.join(sorted(table))}."
    shown = repr(str(name))
    shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
    raise UserError(f"There is no {what} named {shown}: {hint}")

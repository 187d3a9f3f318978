"""How commands end when they do not end well."""


class UserError(ValueError):
    """A mistake that the user can mend, in one sentence: what is wrong, where, and what to do.

    Commands print it without a traceback and exit with its ``status``.
    """

    status = 2


class BusyError(UserError):
    """The folder of a training is used by another one."""

    status = 4


MISTAKE = UserError.status
"""Exit status after a :class:`UserError`."""

STOPPED = 3
"""Exit status of a training that a signal stopped: it has saved, and ``--resume`` goes on."""

BUSY = BusyError.status
"""Exit status of a training whose folder another training is using."""

"""The one exception that a user's mistake ends in."""


class UserError(ValueError):
    """A mistake that the user can mend, in one sentence: what is wrong, where, and what to do.

    Commands print it without a traceback and exit with status 2.
    """

"""Config overrides in a suite: their checks, and their form on a command line."""

import reprlib
from collections.abc import Mapping
from typing import Any

from dpk_det.errors import UserError

# config key that the comparison sets itself -> what to use instead
_RESERVED = {"SEED": "seeds", "OUTPUT_DIR": "--runs on the command line", "IMPORTS": "imports"}


def check_opts(content: Mapping[Any, Any], where: str) -> Mapping[str, Any]:
    """Check overrides, and return them unchanged.

    Args:
        content: config key to value.
        where: place of the overrides in the suite, for error messages.

    Raises:
        UserError: when a key or value is invalid, or the comparison sets a key itself.
    """
    for key, value in content.items():
        if not isinstance(key, str) or not key:
            raise UserError(f"{where} holds the key {key!r}: write config keys, SOLVER.MAX_ITER.")
        if key in _RESERVED:
            raise UserError(f"{key} cannot be set in {where}: use {_RESERVED[key]}.")
        if isinstance(value, dict):
            raise UserError(
                f"{key} in {where} holds further keys: write each with its dots, as "
                "SOLVER.MAX_ITER."
            )
        if not _is_value(value):
            raise UserError(
                f"{key} in {where} is {reprlib.repr(value)}: write a text, a number, True, False "
                'or a list of them ("None" in quotes).'
            )
    return content


def _is_value(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_value(x) for x in value)
    return isinstance(value, str | int | float)


def overrides(opts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return config keys and their values as arguments of a command line."""
    # yacs parses these strings as it parses a config file: "(60, 80)" and "1e-4", which YAML reads
    # as strings, become a tuple and a number.
    return tuple(text for key, value in opts.items() for text in (key, str(value)))

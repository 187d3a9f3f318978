"""The search space of a suite's tuning: config keys, and the range or the choices of each."""

import math
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dpk_det.errors import UserError, find

_EDGE = 1 / 8  # share of a range, at each end
_FACTOR = 10  # widens a logarithmic range
# keys that the tuning, or the suite, sets itself
_RESERVED = ("SEED", "OUTPUT_DIR", "IMPORTS", "SOLVER.MAX_ITER", "TEST.EVAL_PERIOD")
_RESERVED += ("MODEL.BACKBONE_WEIGHTS", "DISTILL.TEACHER.")


class Range(msgspec.Struct, frozen=True):
    """Numbers from ``low`` to ``high``, both included; integers if both ends are integers.

    Attributes:
        log: whether equal ratios, and not equal differences, are equally likely.
    """

    low: float | int
    high: float | int
    log: bool

    @property
    def whole(self) -> bool:
        """Whether all numbers are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def values(self) -> tuple[Any, ...]:
        """The ends, which stand for all values in checks."""
        return self.low, self.high

    def edge(self, value: float) -> str | None:
        """Return "low" or "high" for a value in the outer eighth of that side, otherwise None."""
        low, high, x = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        place = (x - low) / (high - low)
        return "low" if place <= _EDGE else "high" if place >= 1 - _EDGE else None

    def widened(self, side: str) -> "Range":
        """Return the range with one side moved: by a factor of ten if ``log``, or by its width."""
        low, high, width = self.low, self.high, self.high - self.low
        if side == "high":
            high = high * _FACTOR if self.log else high + width
        elif not self.log:
            low -= width
        else:
            low = max(low // _FACTOR, 1) if self.whole else low / _FACTOR
        return Range(low, high, self.log)


class Choices(msgspec.Struct, frozen=True):
    """Values without an order."""

    values: tuple[str | bool | int | float, ...]


Space = Mapping[str, Range | Choices]
"""Config key to its values."""


class Tune(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node ``tune`` of a suite.

    Attributes:
        seed: seed of the trials.
        trials: number of trials per method before a range is widened.
        keys: method to config key to its values.
    """

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    trials: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    keys: dict[str, dict[str, Any]]


def read_tune(
    content: Any, path: Path, methods: Mapping[str, Any], seeds: Collection[int]
) -> Tune | None:
    """Read the node ``tune`` of a suite; None if the suite has none.

    Args:
        content: content of the node.
        path: file of the suite.
        methods: methods of the suite.
        seeds: seeds of the suite.

    Raises:
        UserError: for the first mistake, naming its place.
    """
    if content is None:
        return None
    try:
        tune = msgspec.convert(content, Tune)
    except msgspec.ValidationError as e:
        raise UserError(
            f"tune of {path} cannot be read ({e}): write seed, trials and keys, as "
            "docs/comparing.md shows."
        ) from e
    if tune.seed in seeds:
        raise UserError(
            f"tune.seed of {path} is {tune.seed}, which is among the suite's seeds: choose another "
            "one, because what is compared must not be what was tuned on."
        )
    if not tune.keys:
        raise UserError(f"tune.keys of {path} is empty: name the methods to tune.")
    keys = {}
    for method, spaces in tune.keys.items():
        find(methods, method, f"method in tune.keys of {path}")
        if not spaces:
            raise UserError(f"tune.keys.{method} of {path} is empty: name config keys.")
        keys[method] = {
            key: _read_values(key, values, f"tune.keys.{method}.{key} of {path}")
            for key, values in spaces.items()
        }
    return msgspec.structs.replace(tune, keys=keys)


def _read_values(key: str, values: Any, where: str) -> Range | Choices:
    if key.startswith(_RESERVED):
        raise UserError(f"{where} cannot be tuned, because it is set by the suite: take it out.")
    numbers = [_number(value) for value in values] if isinstance(values, list) else []
    if len(numbers) == 2 and None not in numbers:
        low, high = numbers
        if not low < high:
            raise UserError(
                f"{where} is {reprlib.repr(values)}: write the smaller number first, then the "
                "larger."
            )
        return Range(low, high, log=low > 0 and high / low >= 10)
    if len(numbers) < 2 or not all(isinstance(value, str | int | float) for value in values):
        raise UserError(
            f"{where} is {reprlib.repr(values)}: write two numbers, for a range, or a list of "
            "texts, numbers, True and False to choose from."
        )
    if len({*map(repr, values)}) < len(values):
        raise UserError(f"{where} has a value twice: take one of them out.")
    return Choices(tuple(values))


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)  # YAML reads 1e-4 as a string
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return value if isinstance(value, int) else number

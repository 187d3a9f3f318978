"""Arguments of methods: lists what a constructor takes, and checks what the user gives.

The constructor's signature gives names and defaults, and its annotations give the allowed values.
The class's docstring gives the meanings. An argument that is annotated with a dataclass is a group:
the user gives its fields by their own names, like other arguments.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

from msgspec import Meta

from dpk_det.errors import UserError, find
from dpk_det.schema import convert

Weight = Annotated[float, Meta(ge=0, le=1_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0.001, le=1000)]
Depth = Annotated[int, Meta(ge=0, le=12)]
Width = Annotated[int, Meta(ge=1, le=8192)]
PartialShare = Annotated[float, Meta(ge=0, lt=1)]
Steps = Annotated[int, Meta(ge=1, le=1_000_000)]

REQUIRED = inspect.Parameter.empty
"""The default of an argument that must be given."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a method.

    Attributes:
        kind: its annotation; Any without annotation.
        default: its default, or :data:`REQUIRED`.
        meaning: its entry in the docstring; "" if there is none.
        group: name of the constructor's argument that has it as a field; None if it is no field.
    """

    kind: Any
    default: Any
    meaning: str
    group: str | None = None


def list_arguments(constructor: Callable[..., Any]) -> tuple[dict[str, Argument], bool]:
    """List what a method's constructor takes after the levels, which come first.

    Returns:
        Name to argument; and whether the constructor takes any other arguments too.
    """
    try:
        _, *parameters = inspect.signature(constructor).parameters.values()
    except ValueError:  # for example, a constructor written in C
        return {}, True
    function = constructor.__init__ if isinstance(constructor, type) else constructor
    kinds, meanings = _hints(function), _meanings(constructor)
    found: dict[str, Argument] = {}
    for x in parameters:
        kind = kinds.get(x.name, Any)
        if dataclasses.is_dataclass(kind):
            found |= _fields(kind, x.name)
        elif x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY):
            found[x.name] = Argument(kind, x.default, meanings.get(x.name, ""))
    return found, any(x.kind is x.VAR_KEYWORD for x in parameters)


def _fields(group: type, name: str) -> dict[str, Argument]:
    kinds, meanings = _hints(group), _meanings(group)
    return {
        x.name: Argument(kinds[x.name], x.default, meanings.get(x.name, ""), name)
        for x in dataclasses.fields(group)
    }


def check_arguments(
    name: str, constructor: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Check the arguments of a method's constructor, and convert each to its annotated type.

    Args:
        name: name of the method.
        constructor: takes the levels first. Arguments without an annotation, and those of
            ``**kwargs``, take any value.
        given: the user's arguments, by name.

    Raises:
        UserError: when the arguments have no names, or one is unknown (the message names the
            nearest), missing, or not of its annotation's kind and range.
    """
    if not isinstance(given, Mapping):
        raise UserError(
            f"The arguments of the method {name} are {given!r}: write them by name, "
            f"{{'{name}': {{'weight': 1.0}}}}, or {{}} for none."
        )
    known, takes_any = list_arguments(constructor)
    for key in given:
        if key not in known and not takes_any:
            find(known, key, f"argument of the method {name}")
    for key, argument in known.items():
        if argument.default is REQUIRED and key not in given:
            raise UserError(f"The method {name} needs the argument {key}: give it.")
    checked: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in given.items():
        argument = known.get(key, Argument(Any, None, ""))
        place = checked if argument.group is None else groups.setdefault(argument.group, {})
        what = f"{key} of {name} (DISTILL.{f'{name}.{key}'.upper()})"
        place[key] = convert(value, argument.kind, what)
    kinds = _hints(constructor.__init__) if groups else {}
    return checked | {group: kinds[group](**values) for group, values in groups.items()}


def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only type checkers know
        return {}


def _meanings(of: Any) -> dict[str, str]:
    """Read the Args or Attributes of a docstring, by name."""
    found: dict[str, str] = {}
    section = re.search(
        r"^(?:Args|Attributes):\n((?: .*\n?|\n)*)", inspect.getdoc(of) or "", re.MULTILINE
    )
    for entry in re.split(r"\n(?=    \w)", "\n" + section[1]) if section else ():
        names, _, meaning = entry.partition(": ")
        found |= dict.fromkeys(names.strip().split(", "), " ".join(meaning.split()))
    return found

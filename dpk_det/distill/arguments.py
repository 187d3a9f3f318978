"""Arguments of methods: the kinds that they have in common, and the check of what is given."""

import inspect
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


def check_arguments(
    name: str, constructor: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments for a method's constructor, each as its annotation wants it.

    Args:
        name: of the method. constructor: takes the levels first; arguments without an annotation,
            and those of ``**kwargs``, take any value.
        given: by the user.

    Raises:
        UserError: when the arguments have no names, or one is unknown (naming the nearest), missing
            or not of its annotation's kind and range.
    """
    if not isinstance(given, Mapping):
        raise UserError(
            f"The arguments of the method {name} are {given!r}: write them by name, "
            f"{{'{name}': {{'weight': 1.0}}}}, or {{}} for none."
        )
    known, takes_any = _parameters(constructor)
    for key in given:
        if key not in known and not takes_any:
            find(known, key, f"argument of the method {name}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            raise UserError(f"The method {name} needs the argument {key}: give it.")
    kinds = _kinds(constructor)
    return {
        key: convert(
            value, kinds.get(key, Any), f"{key} of {name} (DISTILL.{f'{name}.{key}'.upper()})"
        )
        for key, value in given.items()
    }


def _parameters(constructor: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    try:
        _, *parameters = inspect.signature(constructor).parameters.values()
    except ValueError:  # written in C, say
        return {}, True
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_any = any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters)
    return {x.name: x for x in parameters if x.kind in named}, takes_any


def _kinds(constructor: Callable[..., Any]) -> dict[str, Any]:
    function = constructor.__init__ if isinstance(constructor, type) else constructor
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that stand for type checkers alone
        return {}

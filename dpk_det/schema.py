"""Values checked against annotations, by msgspec, and what is wrong with them in a sentence."""

import reprlib
from typing import Any

import msgspec
from msgspec import inspect

from dpk_det.errors import UserError


def convert(value: Any, kind: Any, name: str) -> Any:
    """A value as an annotation wants it: whole numbers become floats, lists tuples.

    Args:
        value: of the user's. kind: an annotation, ``Annotated[float, msgspec.Meta(ge=0)]``. One
            that msgspec knows nothing of takes any value.
        name: what an error calls the value.

    Raises:
        UserError: when the value is none of the kind; NaN is in no range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        raise UserError(f"{name} is {reprlib.repr(value)}: write {describe(kind)}.") from e
    except TypeError:
        return value


def describe(kind: Any) -> str:
    """What a value of an annotation is, in words."""
    return _describe(inspect.type_info(kind))


def _describe(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        return _describe(kind.type)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        number = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return number + _range(kind)
    if isinstance(kind, inspect.BoolType):
        return "True or False"
    if isinstance(kind, inspect.StrType):
        return "a text"
    if isinstance(kind, inspect.NoneType):
        return "nothing"
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(repr, kind.values))}"
    if isinstance(kind, inspect.UnionType):
        return " or ".join(map(_describe, kind.types))
    if isinstance(kind, inspect.CollectionType | inspect.VarTupleType):
        some = f" ({kind.min_length} or more)" if kind.min_length else ""
        return f"a list{some}, of which each is {_describe(kind.item_type)}"
    if isinstance(kind, inspect.TupleType):
        return f"a list of {len(kind.item_types)}: {', '.join(map(_describe, kind.item_types))}"
    return getattr(getattr(kind, "cls", None), "__name__", "what is wanted")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = kind.ge if kind.gt is None else kind.gt
    high = kind.le if kind.lt is None else kind.lt
    if low is None or high is None:
        words = [("above", kind.gt), ("of at least", kind.ge)]
        words += [("below", kind.lt), ("of at most", kind.le)]
        return "".join(f" {word} {limit:,}" for word, limit in words if limit is not None)
    above = "from" if kind.gt is None else "above"
    below = "to" if kind.lt is None else "to below"
    return f" {above} {low:,} {below} {high:,}"

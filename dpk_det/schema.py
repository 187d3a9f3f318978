"""Checks values against annotations with msgspec, and says in a sentence what is wrong."""

import reprlib
from typing import Any

import msgspec
from msgspec import inspect

from dpk_det.errors import UserError


def convert(value: Any, kind: Any, name: str) -> Any:
    """Convert a value to an annotated type: whole numbers to floats, lists to tuples.

    Args:
        value: the user's value.
        kind: an annotation, such as ``Annotated[float, msgspec.Meta(ge=0)]``. A type that msgspec
            does not know accepts every value.
        name: what an error calls the value.

    Raises:
        UserError: if the value does not fit the annotation; NaN is in no range.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        raise UserError(f"{name} is {reprlib.repr(value)}: write {describe(kind)}.") from e
    except TypeError:
        return value


def describe(kind: Any) -> str:
    """Describe in words the values that fit an annotation."""
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

"""Values against annotations, and the words for what is wanted."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta
from torch import nn

from dpk_det.errors import UserError
from dpk_det.schema import convert, describe


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Meta(ge=1)], "a whole number of at least 1"),
        (Annotated[float, Meta(gt=0)], "a number above 0"),
        (Annotated[float, Meta(lt=5)], "a number below 5"),
        (Annotated[float, Meta(ge=0, le=1)], "a number from 0 to 1"),
        (Annotated[float, Meta(gt=0, lt=1)], "a number above 0 to below 1"),
        (bool, "True or False"),
        (str, "a text"),
        (str | None, "a text or nothing"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (Sequence[int], "a list, of which each is a whole number"),
        (Annotated[list[str], Meta(min_length=2)], "a list (2 or more), of which each is a text"),
        (tuple[int, str], "a list of 2: a whole number, a text"),
        (nn.Module, "Module"),
    ],
)
def test_kinds_in_words(kind, words):
    assert describe(kind) == words


def test_values_become_what_is_wanted():
    assert type(convert(3, float, "x")) is float
    assert convert([1, 2], tuple[float, ...], "x") == (1.0, 2.0)
    assert convert("any", Any, "x") == "any"


def test_what_msgspec_knows_nothing_of_takes_any_value():
    kind = nn.Module | Callable
    assert convert(3, kind, "x") == 3


def test_a_value_of_another_kind_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"^SEED is 'one': write a whole number\.$"):
        convert("one", int, "SEED")

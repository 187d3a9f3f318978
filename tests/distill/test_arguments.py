"""Arguments of methods: whatever is wrong with one is said in a sentence, before anything runs."""

from collections.abc import Sequence

import pytest
from torch import nn

from dpk_det.distill import DISTILLERS, Distiller, Level, build_distiller
from dpk_det.distill.arguments import check_arguments
from dpk_det.errors import UserError

LEVELS = [Level("p3", "p3", 8, 4, 4), Level("p4", "p4", 16, 4, 4)]
NAN, INFINITY = float("nan"), float("inf")


def build(name, **given):
    small = {"dim": 8, "heads": 2} if name == "dpk" else {}
    return build_distiller({name: small | given}, LEVELS).methods[name]


@pytest.mark.parametrize(
    ("name", "argument", "value", "wanted"),
    [
        ("dpk", "weight", -1.0, "a number from 0 to 1,000,000"),
        ("dpk", "weight", NAN, "a number from 0"),
        ("dpk", "weight", INFINITY, "a number from 0"),
        ("dpk", "weight", 1e9, "a number from 0"),
        ("dpk", "weight", "12", "a number from 0"),
        ("dpk", "weight", None, "a number from 0"),
        ("dpk", "weight", True, "a number from 0"),
        ("dpk", "level_weights", [1, -1], "a list, of which each is a number from 0"),
        ("dpk", "level_weights", [1, NAN], "a list, of which each is a number from 0"),
        ("dpk", "level_weights", 1.0, "a list, of which each"),
        ("dpk", "token_stride", 0, "a whole number from 1 to 8,192"),
        ("dpk", "dim", 0, "a whole number from 1"),
        ("dpk", "dim", 16.5, "a whole number from 1"),
        ("dpk", "heads", 0, "a whole number from 1"),
        ("dpk", "encoder_depth", -1, "a whole number from 0 to 12"),
        ("dpk", "decoder_depth", 1000, "a whole number from 0 to 12"),
        ("dpk", "prior", 1, "True or False"),
        ("dpk", "ratio", 3, "a text"),
        ("dpk", "ratio_fixed", 5.0, "a number from 0 to 1"),
        ("dpk", "cka_window", 0, "a whole number from 1"),
        ("dpk", "cka_every", 0, "a whole number from 1"),
        ("cwd", "temperature", 0.0, "a number from 0.001 to 1,000"),
        ("cwd", "temperature", 1e9, "a number from 0.001"),
        ("kd", "temperature", -1.0, "a number from 0.001"),
        ("dkd", "temperature", NAN, "a number from 0.001"),
        ("fgd", "temperature", 0, "a number from 0.001"),
        ("mgd", "mask_ratio", 1.0, "a number from 0 to below 1"),
        ("mgd", "mask_ratio", -0.1, "a number from 0 to below 1"),
        ("reviewkd", "mid", 0, "a whole number from 1"),
    ],
)
def test_an_argument_out_of_its_range_is_refused_by_its_names(name, argument, value, wanted):
    key = f"DISTILL.{name}.{argument}".upper().replace(".", r"\.")
    names = rf"^{argument} of {name} \({key}\)"
    with pytest.raises(UserError, match=rf"{names} is .*: write {wanted}.*\.$"):
        build(name, **{argument: value})


@pytest.mark.parametrize("name", sorted(DISTILLERS))
def test_no_method_takes_a_number_without_bounds(name):
    for argument, kind in DISTILLERS[name].__init__.__annotations__.items():
        assert kind not in (int, float, Sequence[float], Sequence[int]), argument


@pytest.mark.parametrize(
    "wrong",
    [
        {"level_weights": [0, 0.0]},
        {"level_weights": [1.0]},
    ],
)
def test_arguments_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(UserError, match=r"^DPK.* level_weights "):
        build("dpk", **wrong)


def test_whole_numbers_and_lists_do():
    dpk = build("dpk", weight=5, level_weights=[1, 2])
    assert (dpk.weight, dpk.level_weights) == (5.0, (1.0, 2.0))


def test_a_misspelt_argument_is_answered_with_the_nearest():
    with pytest.raises(
        UserError, match="argument of the method dpk named 'wieght': did you mean 'weight'"
    ):
        build("dpk", wieght=5)


@pytest.mark.parametrize("methods", [["dpk"], "dpk", None, {"dpk"}])
def test_methods_without_arguments_are_answered_with_how_to_write_them(methods):
    with pytest.raises(UserError, match=r"write each with its arguments, \{'dpk': \{\}\}"):
        build_distiller(methods, LEVELS)


@pytest.mark.parametrize("given", [None, 5.0, ["weight", 5.0]])
def test_arguments_without_names_are_answered_with_how_to_write_them(given):
    with pytest.raises(UserError, match=r"method pkd are .*: write them by name, \{'pkd': \{'we"):
        build_distiller({"pkd": given}, LEVELS)


# ------------------------------------------------------------------ methods of somebody else


class Plain(Distiller):
    """No more than what docs/extending.md asks for."""

    def __init__(self, levels, *, weight=1.0, names: "list[str]" = (), part: nn.Module = None):
        super().__init__(levels)


def test_a_method_without_annotations_takes_any_value():
    given = {"weight": "heavy", "names": ["a"], "part": nn.Identity()}
    assert check_arguments("plain", Plain, given) == given


def test_annotations_that_are_there_count():
    with pytest.raises(UserError, match=r"names of plain .* is \[1\]: write a list, of"):
        check_arguments("plain", Plain, {"names": [1]})
    with pytest.raises(UserError, match="part of plain .* is 3: write Module"):
        check_arguments("plain", Plain, {"part": 3})


def test_further_arguments_pass_where_a_method_takes_them():
    def method(levels, first: int, **further):
        return levels

    assert check_arguments("mine", method, {"first": 1, "b": "c"}) == {"first": 1, "b": "c"}
    with pytest.raises(UserError, match="The method mine needs the argument first"):
        check_arguments("mine", method, {"b": 1})


def test_annotations_that_cannot_be_looked_up_are_passed_over():
    def method(levels, first: "Unknown"):  # noqa: F821
        return levels

    assert check_arguments("mine", method, {"first": 1}) == {"first": 1}

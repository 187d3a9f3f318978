"""Which student level learns from which teacher level."""

import pytest
from detectron2.layers import ShapeSpec

from dpk_det.distill import Level
from dpk_det.errors import UserError
from dpk_det.pairing.levels import pair_levels


def maps(channels, **strides):
    return {name: ShapeSpec(channels=channels, stride=stride) for name, stride in strides.items()}


FASTER_RCNN = maps(64, p2=4, p3=8, p4=16, p5=32, p6=64)
RETINANET = maps(256, p3=8, p4=16, p5=32, p6=64, p7=128)


def test_p2_to_p6_with_p3_to_p7_pair_where_strides_are_equal():
    assert pair_levels(FASTER_RCNN, RETINANET) == [
        Level("p3", "p3", 8, 64, 256),
        Level("p4", "p4", 16, 64, 256),
        Level("p5", "p5", 32, 64, 256),
        Level("p6", "p6", 64, 64, 256),
    ]


def test_names_do_not_matter_and_the_finest_comes_first():
    student = {
        "c5": ShapeSpec(channels=32, stride=32),
        "c4": ShapeSpec(channels=16, stride=16),
    }
    # names that would mislead: the same name at another stride
    teacher = {
        "c5": ShapeSpec(channels=7, stride=16),
        "top": ShapeSpec(channels=9, stride=32),
    }
    assert pair_levels(student, teacher) == [
        Level("c4", "c5", 16, 16, 7),
        Level("c5", "top", 32, 32, 9),
    ]


def test_of_several_maps_of_one_stride_the_namesake_is_taken_else_the_deepest():
    student = maps(8, res4=16, res5=32)
    dilated = {**maps(5, stem=4), **maps(6, res4=16), **maps(7, res5=16)}
    assert pair_levels(student, dilated) == [Level("res4", "res4", 16, 8, 6)]
    assert pair_levels(maps(8, p4=16), dilated) == [Level("p4", "res5", 16, 8, 7)]
    # both of a student's maps may learn from one
    pairs = pair_levels(dilated, maps(9, p4=16))
    assert pairs == [Level("res4", "p4", 16, 6, 9), Level("res5", "p4", 16, 7, 9)]


def test_a_detector_without_a_neck_pairs_with_its_kind_and_with_an_fpn():
    c4 = maps(1024, res4=16)
    assert pair_levels(c4, maps(512, res4=16)) == [Level("res4", "res4", 16, 1024, 512)]
    assert pair_levels(c4, FASTER_RCNN) == [Level("res4", "p4", 16, 1024, 64)]
    assert pair_levels(FASTER_RCNN, c4) == [Level("p4", "res4", 16, 64, 1024)]


def test_named_levels_alone_are_paired():
    levels = pair_levels(FASTER_RCNN, RETINANET, ["p5", "p3"])
    assert [level.student for level in levels] == ["p3", "p5"]


def test_an_unknown_level_is_an_error_that_lists_the_students():
    with pytest.raises(UserError, match=r"'p9', which the student lacks: .*p2 \(stride 4\), p3"):
        pair_levels(FASTER_RCNN, RETINANET, ["p3", "p9"])


def test_a_named_level_without_a_partner_is_an_error():
    with pytest.raises(
        UserError, match=r"p2 \(stride 4\) has no partner among the teacher's p3 \(stride 8\)"
    ):
        pair_levels(FASTER_RCNN, RETINANET, ["p2", "p3"])


def test_nothing_in_common_is_one_error_that_lists_both():
    with pytest.raises(
        UserError, match=r"the student has p2 \(stride 4\), the teacher p5 \(stride 32\)"
    ):
        pair_levels(maps(8, p2=4), maps(8, p5=32))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["p3", "p3"], "DISTILL.LEVELS names p3 twice: take one of them out"),
        ([3], r"DISTILL.LEVELS is \[3\]: write a list of names"),
        ("p3", "DISTILL.LEVELS is 'p3': write a list of names"),
    ],
)
def test_levels_are_names_each_once(names, message):
    maps = {"p3": ShapeSpec(channels=4, stride=8)}
    with pytest.raises(UserError, match=message):
        pair_levels(maps, maps, names)

"""The small ResNet against Detectron2's own where both can be built."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from dpk_det.config.loading import load_config
from dpk_det.errors import UserError


def config(name, in_features, *opts):
    return load_config(
        "",
        [
            *("MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.FREEZE_AT", "0"),
            *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
            *("MODEL.RESNETS.OUT_FEATURES", str(in_features)),
            *("MODEL.FPN.IN_FEATURES", str(in_features), "MODEL.FPN.OUT_CHANNELS", "16"),
            *opts,
        ],
    )


def small(in_features, *opts):
    return build_backbone(config("build_small_resnet_fpn_backbone", in_features, *opts))


ALL = ["res2", "res3", "res4", "res5"]


def test_in_resnet18s_widths_it_is_detectron2s_resnet18():
    torch.manual_seed(0)
    theirs = build_backbone(
        config("build_resnet_fpn_backbone", ALL, "MODEL.RESNETS.NORM", "BN")
    ).eval()
    ours = small(
        ALL,
        *("MODEL.RESNETS.NORM", "BN"),
        *("MODEL.SMALL_RESNET.WIDTHS", "[64, 128, 256, 512]"),
        *("MODEL.SMALL_RESNET.BLOCKS", "[2, 2, 2, 2]"),
    ).eval()
    ours.load_state_dict(theirs.state_dict())  # the same names and shapes, or an error
    assert ours.output_shape() == theirs.output_shape()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, maps = theirs(image), ours(image)
    assert maps.keys() == expected.keys()
    assert all(torch.equal(maps[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("in_features", "widths", "names"),
    [
        (ALL, [4, 8, 12, 16], ["p2", "p3", "p4", "p5", "p6"]),
        (["res2", "res3", "res4"], [4, 8, 12], ["p2", "p3", "p4"]),
        (["res3", "res4", "res5"], [4, 8, 12, 16], ["p3", "p4", "p5", "p6"]),
    ],
)
def test_the_maps_have_the_announced_names_sizes_and_channels(in_features, widths, names):
    backbone = small(
        in_features,
        *("MODEL.SMALL_RESNET.WIDTHS", str(widths)),
        *("MODEL.SMALL_RESNET.BLOCKS", str([1] * len(widths))),
        *("MODEL.RESNETS.NORM", "GN"),
    )
    shapes = backbone.output_shape()
    maps = backbone(torch.randn(1, 3, 128, 64))
    assert list(shapes) == list(maps) == names
    for name, spec in shapes.items():
        assert spec.stride == 2 ** int(name[1])
        assert maps[name].shape == (1, 16, 128 // spec.stride, 64 // spec.stride)


@pytest.mark.parametrize(
    ("channels", "groups"), [(2, 1), (4, 1), (16, 4), (128, 32), (130, 26), (256, 32)]
)
def test_groupnorm_has_groups_of_four_channels_or_more_32_at_most(channels, groups):
    backbone = small(
        ["res2"],
        *("MODEL.SMALL_RESNET.WIDTHS", str([channels])),
        *("MODEL.SMALL_RESNET.BLOCKS", "[1]", "MODEL.RESNETS.NORM", "GN"),
    )
    norms = [module for module in backbone.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}


def test_depths_are_blocks_a_stage():
    backbone = small(
        ["res2", "res3"],
        *("MODEL.SMALL_RESNET.WIDTHS", "[8, 16]", "MODEL.SMALL_RESNET.BLOCKS", "[3, 2]"),
        *("MODEL.RESNETS.NORM", "GN"),
    )
    trunk = backbone.bottom_up
    assert (len(trunk.res2), len(trunk.res3)) == (3, 2)


@pytest.mark.parametrize("widths, blocks", [("[8, 8]", "[1, 1]"), ("[8, 16]", "[1]")])
def test_widths_that_do_not_grow_or_do_not_match_the_blocks_are_an_error(widths, blocks):
    # Detectron2's BasicBlock leaves the shortcut out where the width stays, whatever the stride
    with pytest.raises(UserError, match=r"SMALL_RESNET has WIDTHS"):
        small(
            ["res2", "res3"],
            *("MODEL.SMALL_RESNET.WIDTHS", widths, "MODEL.SMALL_RESNET.BLOCKS", blocks),
        )


def test_images_may_have_other_channels_than_three():
    opts = ("MODEL.PIXEL_MEAN", "[0.0]", "MODEL.PIXEL_STD", "[1.0]", "MODEL.RESNETS.NORM", "GN")
    backbone = small(ALL, *opts)
    assert backbone.bottom_up.stem.conv1.weight.shape[1] == 1

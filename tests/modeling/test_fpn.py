"""The FPN's top blocks against Detectron2's own builders, and against what they should compute."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone

from dpk_det.config.loading import load_config
from dpk_det.errors import UserError

OURS = "build_resnet_fpn_top_backbone"
ALL = ["res2", "res3", "res4", "res5"]


def build(name, in_features, top_block="", *opts):
    torch.manual_seed(0)
    cfg = load_config(
        "",
        [
            *("MODEL.BACKBONE.NAME", name, "MODEL.FPN.TOP_BLOCK", top_block),
            *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
            *("MODEL.RESNETS.OUT_FEATURES", str(in_features)),
            *("MODEL.FPN.IN_FEATURES", str(in_features), "MODEL.FPN.OUT_CHANNELS", "8"),
            *opts,
        ],
    )
    return build_backbone(cfg).eval()


@torch.no_grad()
def maps(backbone, height=128, width=64):
    torch.manual_seed(1)
    return backbone(torch.randn(1, 3, height, width))


@pytest.mark.parametrize(
    ("theirs", "in_features", "top_block"),
    [
        ("build_resnet_fpn_backbone", ALL, ""),
        ("build_resnet_fpn_backbone", ALL, "maxpool"),
        ("build_retinanet_resnet_fpn_backbone", ["res3", "res4", "res5"], "p6p7"),
    ],
)
def test_with_detectron2s_top_blocks_it_is_detectron2s(theirs, in_features, top_block):
    reference, ours = build(theirs, in_features), build(OURS, in_features, top_block)
    ours.load_state_dict(reference.state_dict())  # the same names and shapes, or an error
    assert ours.output_shape() == reference.output_shape()
    assert ours.size_divisibility == reference.size_divisibility == 32
    expected, given = maps(reference), maps(ours)
    assert list(given) == list(expected)
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("in_features", "top_block", "names"),
    [
        (ALL, "", ["p2", "p3", "p4", "p5", "p6"]),
        (["res3", "res4", "res5"], "", ["p3", "p4", "p5", "p6"]),
        (["res2", "res3", "res4"], "", ["p2", "p3", "p4"]),
        (ALL, "none", ["p2", "p3", "p4", "p5"]),
        (["res2", "res3", "res4"], "maxpool", ["p2", "p3", "p4", "p5"]),
        (["res3", "res4", "res5"], "p6p7", ["p3", "p4", "p5", "p6", "p7"]),
        (["res3", "res4", "res5"], "p6p7_p5", ["p3", "p4", "p5", "p6", "p7"]),
        (["res3", "res4"], "p6p7", ["p3", "p4", "p5", "p6"]),
        (["res3", "res4"], "p6p7_p5", ["p3", "p4", "p5", "p6"]),
    ],
)
def test_each_top_block_gives_the_announced_maps(in_features, top_block, names):
    backbone = build(OURS, in_features, top_block)
    given, shapes = maps(backbone), backbone.output_shape()
    assert list(given) == list(shapes) == names
    for name, spec in shapes.items():
        assert (spec.stride, spec.channels) == (2 ** int(name[1]), 8)
        # at 64 pixels p7 is made of a map with one column
        assert given[name].shape == (1, 8, 128 // spec.stride, max(64 // spec.stride, 1))


@pytest.mark.parametrize(("in_features", "coarsest"), [(["res3", "res4", "res5"], 5), (ALL[:3], 4)])
@pytest.mark.parametrize("top_block", ["p6p7", "p6p7_p5", "maxpool"])
def test_the_top_block_reads_the_map_that_its_name_says(in_features, coarsest, top_block):
    backbone = build(OURS, in_features, top_block)
    given = maps(backbone)
    seen = []
    backbone.bottom_up.register_forward_hook(lambda *args: seen.append(args[2]))
    maps(backbone)
    read = seen[0][in_features[-1]] if top_block == "p6p7" else given[f"p{coarsest}"]
    first, second = f"p{coarsest + 1}", f"p{coarsest + 2}"
    if top_block == "maxpool":
        assert second not in given
        assert torch.equal(given[first], read[:, :, ::2, ::2])
        return
    p6, p7 = backbone.top_block.p6, backbone.top_block.p7
    expected = F.conv2d(read, p6.weight, p6.bias, stride=2, padding=1)
    assert torch.equal(given[first], expected)
    expected = F.conv2d(expected.clamp(min=0), p7.weight, p7.bias, stride=2, padding=1)
    assert torch.equal(given[second], expected)


def test_the_small_resnet_takes_the_key_too():
    backbone = build(
        "build_small_resnet_fpn_backbone",
        ["res3", "res4"],
        "p6p7_p5",
        *("MODEL.SMALL_RESNET.WIDTHS", "[4, 8, 12]", "MODEL.SMALL_RESNET.BLOCKS", "[1, 1, 1]"),
    )
    assert list(maps(backbone)) == ["p3", "p4", "p5", "p6"]


def test_norm_and_fusing_are_the_keys():
    reference, ours = (
        build(name, ALL, "", "MODEL.FPN.NORM", "GN", "MODEL.FPN.FUSE_TYPE", "avg", *WIDE)
        for name in ("build_resnet_fpn_backbone", OURS)
    )
    ours.load_state_dict(reference.state_dict())
    expected, given = maps(reference), maps(ours)
    assert all(torch.equal(given[name], expected[name]) for name in expected)


WIDE = ["MODEL.FPN.OUT_CHANNELS", "32"]  # GN has 32 groups


@pytest.mark.parametrize(
    ("in_features", "top_block", "message"),
    [
        (ALL, "p6_p7", r"no MODEL\.FPN\.TOP_BLOCK named 'p6_p7': did you mean 'p6p7'\?"),
        (["res2", "res4"], "", r"\['res2', 'res4'\] of res2 \(stride 4\), res4 .* doubling stride"),
        (["res3", "res2"], "", r"\['res3', 'res2'\] of res.* doubling stride"),
    ],
)
def test_a_neck_that_cannot_be_is_an_error(in_features, top_block, message):
    with pytest.raises(UserError, match=message):
        build(OURS, in_features, top_block)


@pytest.mark.parametrize("in_features", [[], ["res2", "res6"]])
def test_maps_that_the_network_lacks_are_an_error(in_features):
    with pytest.raises(
        UserError, match=r"IN_FEATURES is .*has res2 \(stride 4\), res3 \(stride 8\)"
    ):
        build(OURS, ["res2", "res3"], "", "MODEL.FPN.IN_FEATURES", str(in_features))

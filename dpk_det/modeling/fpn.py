"""Detectron2's FPN on any bottom-up network, with the coarsest maps that a detector needs."""

import math
from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from dpk_det.errors import UserError, find
from dpk_det.pairing.levels import list_maps


def build_fpn(bottom_up: Backbone, cfg: CfgNode) -> FPN:
    """Build an FPN as ``cfg.MODEL.FPN`` describes it, including ``TOP_BLOCK``.

    Args:
        bottom_up: the network whose maps ``IN_FEATURES`` names, from fine to coarse.

    Returns:
        A backbone with a map for each of ``IN_FEATURES``, and the maps of the top block. A map is
        named "p" and the binary logarithm of its stride.

    Raises:
        UserError: if the top block is unknown, the network lacks a map, or the strides do not
            double from each map to the next.
    """
    node, shapes = cfg.MODEL.FPN, bottom_up.output_shape()
    names = list(node.IN_FEATURES)
    if not names or not set(names) <= set(shapes):
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {names}, but the network below has {list_maps(shapes)}: "
            "choose from these."
        )
    if any(shapes[b].stride != 2 * shapes[a].stride for a, b in pairwise(names)):
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {names} of {list_maps(shapes)}: give it maps of "
            "doubling stride."
        )
    return FPN(
        bottom_up,
        in_features=names,
        out_channels=node.OUT_CHANNELS,
        norm=node.NORM,
        fuse_type=node.FUSE_TYPE,
        top_block=_top_block(node, names[-1], shapes[names[-1]]),
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_top_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's ResNet with an FPN and ``MODEL.FPN.TOP_BLOCK``, as FCOS needs it.

    Detectron2's own builders have one fixed top block each: p6 by pooling, or p6 and p7 from res5.

    Raises:
        UserError: as :func:`build_fpn` does.
    """
    return build_fpn(build_resnet_backbone(cfg, input_shape), cfg)


def _top_block(node: CfgNode, coarsest: str, shape: ShapeSpec) -> nn.Module | None:
    # `coarsest` is the last of MODEL.FPN.IN_FEATURES, and `shape` is its width and stride
    level = f"p{int(math.log2(shape.stride))}"
    usual = "maxpool" if coarsest == "res5" else "none"
    blocks = {
        "none": lambda: None,
        "maxpool": LastLevelMaxPool,
        "p6p7": lambda: LastLevelP6P7(shape.channels, node.OUT_CHANNELS, coarsest),
        "p6p7_p5": lambda: LastLevelP6P7(node.OUT_CHANNELS, node.OUT_CHANNELS, level),
    }
    name = node.TOP_BLOCK or usual
    block = find(blocks, name, "MODEL.FPN.TOP_BLOCK")()
    if name == "maxpool":
        block.in_feature = level  # Detectron2's block always reads p5
    return block

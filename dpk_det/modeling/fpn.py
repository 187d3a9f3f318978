"""Detectron2's FPN on any bottom-up network, with the coarsest maps that a detector asks for."""

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
    """An FPN as ``cfg.MODEL.FPN`` describes it, ``TOP_BLOCK`` included.

    Args:
        bottom_up: the network whose maps ``IN_FEATURES`` names, from fine to coarse.

    Returns:
        A backbone with a map for each of those and the ones of the top block, named "p" and the
        binary logarithm of the stride.

    Raises:
        UserError: for an unknown top block, and maps that the network lacks or whose strides do not
            double from one to the next.
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
    """Detectron2's ResNet on an FPN with ``MODEL.FPN.TOP_BLOCK``, as FCOS needs it.

    Detectron2's own builders have one top block each: p6 by pooling, or p6 and p7 from res5.

    Raises:
        UserError: as :func:`build_fpn` does.
    """
    return build_fpn(build_resnet_backbone(cfg, input_shape), cfg)


def _top_block(node: CfgNode, coarsest: str, shape: ShapeSpec) -> nn.Module | None:
    # `coarsest` and its shape are those of the bottom-up network's last map
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
        block.in_feature = level  # Detectron2's says p5, whatever there is
    return block

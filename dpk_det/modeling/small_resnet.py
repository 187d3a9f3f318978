"""A ResNet of any width on an FPN: detectors small enough for a demonstration on a CPU."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch import nn

from dpk_det.errors import UserError

from .fpn import build_fpn


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Basic blocks as in ResNet-18, in the widths and depths of ``cfg.MODEL.SMALL_RESNET``.

    Detectron2's own builder holds ResNet-18 to 64 channels in its first stage. Norm and FPN come
    from ``MODEL.RESNETS.NORM`` and ``MODEL.FPN``, as there; but "GN" has groups of four channels,
    32 groups at most. With res5 last in ``MODEL.FPN.IN_FEATURES`` the maps are p2 to p6, as usual;
    without it there is no p6 either, unless ``MODEL.FPN.TOP_BLOCK`` says so.

    Raises:
        UserError: when widths and blocks do not go together, and as :func:`.build_fpn` does.
    """
    widths, blocks = cfg.MODEL.SMALL_RESNET.WIDTHS, cfg.MODEL.SMALL_RESNET.BLOCKS
    if len(widths) != len(blocks) or len(set(widths)) < len(widths):
        raise UserError(
            f"MODEL.SMALL_RESNET has WIDTHS {widths} and BLOCKS {blocks}: give as many of "
            "either, and each stage another width."
        )  # Detectron2's basic block has no shortcut to stride in where the width stays
    norm = _norm(cfg.MODEL.RESNETS.NORM)
    stem = BasicStem(input_shape.channels, widths[0], norm)
    stages = [
        ResNet.make_stage(
            BasicBlock,
            depth,
            stride_per_block=[1 if i == 0 else 2] + [1] * (depth - 1),
            in_channels=widths[max(i - 1, 0)],
            out_channels=width,
            norm=norm,
        )
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True))
    ]
    return build_fpn(ResNet(stem, stages, out_features=cfg.MODEL.FPN.IN_FEATURES), cfg)


def _norm(name: str) -> str | Callable[[int], nn.Module]:
    # Detectron2's "GN" always has 32 groups, more than a narrow network has channels
    return (
        (lambda channels: nn.GroupNorm(min(32, channels // 4), channels)) if name == "GN" else name
    )

"""A ResNet of any width on an FPN: detectors small enough for a demonstration on a CPU."""

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch import nn

from dpk_det.errors import UserError


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`small_resnet_fpn` in the widths and depths of ``cfg.MODEL.SMALL_RESNET``.

    Norm and FPN come from ``MODEL.RESNETS.NORM`` and ``MODEL.FPN``, as for Detectron2's own.

    Raises:
        UserError: when widths and blocks do not go together.
    """
    return small_resnet_fpn(
        cfg.MODEL.SMALL_RESNET.WIDTHS,
        cfg.MODEL.SMALL_RESNET.BLOCKS,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.RESNETS.NORM,
        fpn_norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        in_channels=input_shape.channels,
    )


def small_resnet_fpn(
    widths: Sequence[int],
    blocks: Sequence[int],
    in_features: Sequence[str],
    out_channels: int,
    norm: str = "GN",
    fpn_norm: str = "",
    fuse_type: str = "sum",
    in_channels: int = 3,
) -> FPN:
    """Basic blocks as in ResNet-18, of any width, on an FPN.

    Detectron2's own builder holds ResNet-18 to 64 channels in its first stage.

    Args:
        widths: channels of each stage, of the first one and the stem first. blocks: of each stage.
        in_features: stages that the FPN takes, "res2" first. With res5 among them the maps are p2
            to p6, as usual; without it there is no p6 either.
        out_channels: of the FPN's maps.
        norm: Detectron2's name; but "GN" has groups of four channels, 32 groups at most.
        fpn_norm, fuse_type: as Detectron2's FPN takes. in_channels: of the image.

    Raises:
        UserError: when widths and blocks do not go together.
    """
    widths, blocks = list(widths), list(blocks)
    if len(widths) != len(blocks) or len(set(widths)) < len(widths):
        raise UserError(
            f"MODEL.SMALL_RESNET has WIDTHS {widths} and BLOCKS {blocks}: give as many of "
            "either, and each stage another width."
        )  # Detectron2's basic block has no shortcut to stride in where the width stays
    layer = _norm(norm)
    stages = [
        ResNet.make_stage(
            BasicBlock,
            depth,
            stride_per_block=[1 if i == 0 else 2] + [1] * (depth - 1),
            in_channels=widths[max(i - 1, 0)],
            out_channels=width,
            norm=layer,
        )
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True))
    ]
    return FPN(
        ResNet(BasicStem(in_channels, widths[0], layer), stages, out_features=list(in_features)),
        in_features=list(in_features),
        out_channels=out_channels,
        norm=fpn_norm,
        fuse_type=fuse_type,
        top_block=LastLevelMaxPool() if "res5" in in_features else None,
    )


def _norm(name: str) -> str | Callable[[int], nn.Module]:
    # Detectron2's "GN" always has 32 groups, more than a narrow network has channels
    return (
        (lambda channels: nn.GroupNorm(min(32, channels // 4), channels)) if name == "GN" else name
    )

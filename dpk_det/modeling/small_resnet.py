"""A ResNet of any width with an FPN, for detectors small enough to demonstrate on a CPU."""

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch import nn

from dpk_det.errors import UserError
from dpk_det.modeling.fpn import build_fpn


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build :func:`small_resnet` as ``cfg.MODEL.SMALL_RESNET`` describes it, with an FPN.

    Norm and FPN come from ``MODEL.RESNETS.NORM`` and ``MODEL.FPN``, as in Detectron2. If res5 is
    the last of ``MODEL.FPN.IN_FEATURES``, the maps are p2 to p6, as usual. Otherwise the FPN adds
    no coarser map, unless ``MODEL.FPN.TOP_BLOCK`` is set.

    Raises:
        UserError: as :func:`small_resnet` and :func:`.build_fpn` do.
    """
    node = cfg.MODEL.SMALL_RESNET
    network = small_resnet(
        node.WIDTHS,
        node.BLOCKS,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.RESNETS.NORM,
        input_shape.channels,
    )
    return build_fpn(network, cfg)


def small_resnet(
    widths: Sequence[int],
    blocks: Sequence[int],
    out_features: Sequence[str],
    norm: str = "GN",
    in_channels: int = 3,
) -> ResNet:
    """Build a ResNet of basic blocks as in ResNet-18, with any width.

    Detectron2's own builder fixes the width of ResNet-18 at 64.

    Args:
        widths: channels of each stage. The stem is as wide as the first stage.
        blocks: number of blocks in each stage.
        out_features: the maps to return, from "res2", "res3", ...
        norm: Detectron2's name. Here "GN" has groups of at least four channels, and at most 32
            groups.
        in_channels: channels of the image.

    Raises:
        UserError: if ``widths`` and ``blocks`` differ in length, or if two stages have one width.
    """
    widths, blocks = list(widths), list(blocks)
    if len(widths) != len(blocks) or len(set(widths)) < len(widths):
        raise UserError(
            f"MODEL.SMALL_RESNET has WIDTHS {widths} and BLOCKS {blocks}: give as many of "
            "either, and each stage another width."
        )  # without a change of width Detectron2's basic block has no shortcut that could stride
    layer = _norm(norm)
    stem = BasicStem(in_channels, widths[0], layer)
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
    return ResNet(stem, stages, out_features=list(out_features))


def _norm(name: str) -> str | Callable[[int], nn.Module]:
    # Detectron2's "GN" always has 32 groups, more than a narrow network has channels
    return _group_norm if name == "GN" else name


def _group_norm(channels: int) -> nn.Module:
    most = max(min(32, channels // 4), 1)
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels)

"""FCOS for configs: Detectron2 has the class, but cannot build it from ``cfg.MODEL``."""

import math

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS as Detector
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import nn

from dpk_det.errors import UserError


@META_ARCH_REGISTRY.register()
def FCOS(cfg: CfgNode) -> Detector:
    """Build FCOS (Tian et al. 2019, arXiv:1904.01355) as ``cfg.MODEL.FCOS`` describes it.

    The result is Detectron2's own class. The backbone's maps ``IN_FEATURES`` must have the same
    width. The head has that width too.

    Raises:
        UserError: if the backbone lacks one of these maps, or their widths differ.
    """
    node, backbone = cfg.MODEL.FCOS, build_backbone(cfg)
    shapes = backbone.output_shape()
    absent = [name for name in node.IN_FEATURES if name not in shapes]
    if absent:
        raise UserError(
            f"MODEL.FCOS.IN_FEATURES names {', '.join(absent)}, which the backbone "
            f"{cfg.MODEL.BACKBONE.NAME} does not give: choose from {', '.join(shapes)}."
        )
    inputs = [shapes[name] for name in node.IN_FEATURES]
    widths = {shape.channels for shape in inputs}
    if len(widths) != 1:
        raise UserError(
            f"MODEL.FCOS.IN_FEATURES has maps of {sorted(widths)} channels, which no one head can "
            "read: choose maps of one width, such as an FPN's."
        )
    head = FCOSHead(
        input_shape=inputs,
        num_classes=node.NUM_CLASSES,
        conv_dims=[*widths] * node.NUM_CONVS,
        norm=_group_norm if node.NORM == "GN" else node.NORM,
        prior_prob=node.PRIOR_PROB,
    )
    return Detector(
        backbone=backbone,
        head=head,
        head_in_features=list(node.IN_FEATURES),
        num_classes=node.NUM_CLASSES,
        center_sampling_radius=node.CENTER_SAMPLING_RADIUS,
        focal_loss_alpha=node.FOCAL_LOSS_ALPHA,
        focal_loss_gamma=node.FOCAL_LOSS_GAMMA,
        test_score_thresh=node.SCORE_THRESH_TEST,
        test_topk_candidates=node.TOPK_CANDIDATES_TEST,
        test_nms_thresh=node.NMS_THRESH_TEST,
        max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


def _group_norm(channels: int) -> nn.GroupNorm:
    # Detectron2's "GN" always has 32 groups. torch refuses these for a narrow head, and for the
    # width 1 with which RetinaNetHead of Detectron2 0.6 tries the norm.
    return nn.GroupNorm(math.gcd(32, channels), channels)

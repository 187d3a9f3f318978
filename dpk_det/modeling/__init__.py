"""Meta-architectures that distil, and backbones that Detectron2 lacks; importing registers them."""

from .fpn import build_fpn, build_resnet_fpn_top_backbone
from .meta_arch import DistillRCNN
from .small_resnet import build_small_resnet_fpn_backbone
from .timm_backbone import build_timm_backbone, build_timm_fpn_backbone

__all__ = [
    "DistillRCNN",
    "build_fpn",
    "build_resnet_fpn_top_backbone",
    "build_small_resnet_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]

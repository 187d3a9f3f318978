"""Meta-architectures that distil, and backbones that Detectron2 lacks; importing registers them."""

from .meta_arch import DistillRCNN
from .small_resnet import build_small_resnet_fpn_backbone, small_resnet_fpn

__all__ = ["DistillRCNN", "build_small_resnet_fpn_backbone", "small_resnet_fpn"]

"""Distilling meta-architectures and networks that Detectron2 lacks. Importing registers them."""

from dpk_det.modeling.cifar import build_cifar_backbone
from dpk_det.modeling.classifier import ImageClassifier
from dpk_det.modeling.fcos import FCOS
from dpk_det.modeling.fpn import build_fpn, build_resnet_fpn_top_backbone
from dpk_det.modeling.meta_arch import register_distilled
from dpk_det.modeling.small_resnet import build_small_resnet_fpn_backbone, small_resnet
from dpk_det.modeling.timm_backbone import build_timm_backbone, build_timm_fpn_backbone

register_distilled("GeneralizedRCNN", "DistillRCNN")  # Faster, Mask, Keypoint and Cascade R-CNN
register_distilled("RetinaNet")
register_distilled("FCOS")
register_distilled("PanopticFPN")
register_distilled("ImageClassifier", "DistillClassifier")

__all__ = [
    "FCOS",
    "ImageClassifier",
    "build_cifar_backbone",
    "build_fpn",
    "build_resnet_fpn_top_backbone",
    "build_small_resnet_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "register_distilled",
    "small_resnet",
]

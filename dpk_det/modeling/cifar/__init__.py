"""Backbones with which the distillation literature compares methods on CIFAR.

They follow the code of CRD (Tian et al. 2020, arXiv:1910.10699), on which most of it is based.
"""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from dpk_det.errors import UserError, find
from dpk_det.modeling.cifar.base import CifarBackbone
from dpk_det.modeling.cifar.mobilenetv2 import mobilenetv2
from dpk_det.modeling.cifar.resnet import resnet
from dpk_det.modeling.cifar.shufflenetv1 import shufflenetv1
from dpk_det.modeling.cifar.shufflenetv2 import shufflenetv2
from dpk_det.modeling.cifar.vgg import vgg
from dpk_det.modeling.cifar.wrn import wrn

NETWORKS: dict[str, Callable[[], CifarBackbone]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(resnet, 8, 4),
    "resnet32x4": partial(resnet, 32, 4),
    "wrn_16_2": partial(wrn, 16, 2),
    "wrn_40_1": partial(wrn, 40, 1),
    "wrn_40_2": partial(wrn, 40, 2),
    "vgg8": partial(vgg, 1),
    "vgg13": partial(vgg, 2),
    "mobilenetv2": mobilenetv2,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
}


@BACKBONE_REGISTRY.register()
def build_cifar_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> CifarBackbone:
    """Build the network ``cfg.MODEL.CIFAR.NAME``, whose feature maps are its stages' outputs.

    It ignores ``MODEL.BACKBONE.FREEZE_AT``: nothing is frozen.

    Raises:
        UserError: if the name is unknown (the message names the nearest), or if images do not have
            three channels.
    """
    build = find(NETWORKS, cfg.MODEL.CIFAR.NAME, "CIFAR network (MODEL.CIFAR.NAME)")
    if input_shape.channels != 3:
        raise UserError(
            f"The CIFAR networks take images of three channels, not {input_shape.channels}: give "
            "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD three values."
        )
    return build()


__all__ = ["NETWORKS", "CifarBackbone", "build_cifar_backbone"]

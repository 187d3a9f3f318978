"""ShuffleNetV2 1x (Ma et al. 2018, arXiv:1807.11164) in its CIFAR form."""

from torch import nn
from torchvision.models.shufflenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from dpk_det.modeling.cifar.base import CifarBackbone, Stage


def shufflenetv2() -> CifarBackbone:
    """Build ShuffleNetV2 from torchvision's blocks on a stem that keeps the image size.

    It has three stages of strides 2, 4 and 8, and the map "final", which the classifier reads.
    """
    stages, before = [], 24
    for stride, channels, depth in ((2, 116, 4), (4, 232, 8), (8, 464, 4)):
        blocks = [InvertedResidual(before, channels, 2)]
        blocks += [InvertedResidual(channels, channels, 1) for _ in range(depth - 1)]
        stages.append(Stage(nn.Sequential(*blocks), stride, channels))
        before = channels
    stages.append(Stage(Conv2dNormActivation(before, 1024, 1), 8, 1024, "final"))
    return CifarBackbone(Conv2dNormActivation(3, 24, 1), stages)

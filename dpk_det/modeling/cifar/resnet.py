"""ResNets for images of 32 x 32 pixels (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from dpk_det.modeling.cifar.base import CifarBackbone, Stage, fill_convolutions


def resnet(depth: int, width: int = 1) -> CifarBackbone:
    """Build three stages of (depth - 2) / 6 basic blocks each, with strides 1, 2 and 4.

    Args:
        depth: number of layers with weights, including the classifier.
        width: factor on the paper's 16, 32 and 64 channels. The stem of a wider network has only
            8 * width channels, 32 in the "x4" networks of the distillation literature.
    """
    stem_channels = 16 if width == 1 else 8 * width
    stages, before = [], stem_channels
    for stride, channels in ((1, 16 * width), (2, 32 * width), (4, 64 * width)):
        step = 1 if stride == 1 else 2
        shortcut = None
        if step > 1 or before != channels:
            shortcut = Conv2dNormActivation(before, channels, 1, step, activation_layer=None)
        blocks = [BasicBlock(before, channels, step, shortcut)]
        blocks += [BasicBlock(channels, channels) for _ in range((depth - 2) // 6 - 1)]
        stages.append(Stage(nn.Sequential(*blocks), stride, channels))
        before = channels
    return fill_convolutions(CifarBackbone(Conv2dNormActivation(3, stem_channels, 3), stages))

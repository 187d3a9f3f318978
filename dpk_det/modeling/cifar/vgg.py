"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) with BatchNorm and one linear layer, the
form that the distillation literature uses for CIFAR."""

from torch import nn
from torchvision.ops import Conv2dNormActivation

from dpk_det.modeling.cifar.base import CifarBackbone, Stage, fill_convolutions


def vgg(convolutions: int) -> CifarBackbone:
    """Build five stages of strides 1, 2, 4, 8 and 8, with equally many convolutions each.

    Args:
        convolutions: number per stage; 1 in VGG-8, 2 in VGG-13.
    """
    stages, before = [], 3
    for stride, channels, halves in (
        (1, 64, False),
        (2, 128, True),
        (4, 256, True),
        (8, 512, True),
        (8, 512, False),
    ):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if halves else []
        for _ in range(convolutions):
            layers.append(Conv2dNormActivation(before, channels, 3, bias=True))
            before = channels
        stages.append(Stage(nn.Sequential(*layers), stride, channels))
    return fill_convolutions(CifarBackbone(nn.Identity(), stages))

"""ShuffleNetV1 (Zhang et al. 2018, arXiv:1707.01083) with three groups, in its CIFAR form."""

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from dpk_det.modeling.cifar.base import CifarBackbone, Stage

_GROUPS = 3


class _Block(nn.Module):
    """Grouped 1 x 1 convolution, channel shuffle, depthwise 3 x 3, grouped 1 x 1; each with a norm.

    The block adds its input to the result. With stride 2 it concatenates the pooled input instead.
    """

    def __init__(self, before: int, channels: int, stride: int, first: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        made = channels - before if self.pool else channels
        hidden = made // 4
        groups = 1 if first else _GROUPS  # the stem is too narrow for groups
        self.layers = nn.Sequential(
            Conv2dNormActivation(before, hidden, 1, groups=groups),
            nn.ChannelShuffle(groups),
            # the paper has no ReLU here, but the distillation literature's code has one
            Conv2dNormActivation(hidden, hidden, 3, stride, groups=hidden),
            Conv2dNormActivation(hidden, made, 1, groups=_GROUPS, activation_layer=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        made = self.layers(x)
        return (torch.cat([made, self.pool(x)], 1) if self.pool else made + x).relu()


def shufflenetv1() -> CifarBackbone:
    """Build three stages of strides 2, 4 and 8. The stem, a 1 x 1 convolution, keeps the size."""
    stages, before = [], 24
    for stride, channels, depth in ((2, 240, 4), (4, 480, 8), (8, 960, 4)):
        blocks = [_Block(before, channels, 2, first=not stages)]
        blocks += [_Block(channels, channels, 1, first=False) for _ in range(depth - 1)]
        stages.append(Stage(nn.Sequential(*blocks), stride, channels))
        before = channels
    return CifarBackbone(Conv2dNormActivation(3, 24, 1), stages)

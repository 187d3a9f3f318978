"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) of half width, in its CIFAR form.

It differs from ImageNet's form, and so from torchvision's blocks. It uses ReLU in place of ReLU6.
The first block has an expanding convolution although its factor is 1. One stride of 2 is missing.
"""

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from dpk_det.modeling.cifar.base import CifarBackbone, Stage, fill_convolutions


class _Block(nn.Sequential):
    """Expand, convolve each channel, project. The input is added if the shape stays the same."""

    def __init__(self, before: int, channels: int, stride: int, expansion: int) -> None:
        hidden = before * expansion
        super().__init__(
            Conv2dNormActivation(before, hidden, 1),
            Conv2dNormActivation(hidden, hidden, 3, stride, groups=hidden),
            Conv2dNormActivation(hidden, channels, 1, activation_layer=None),
        )
        self.adds = stride == 1 and before == channels

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x if self.adds else super().forward(x)


def mobilenetv2() -> CifarBackbone:
    """Build four stages of strides 2, 4, 8, 16, and the map "final", which the classifier reads."""
    stages, before = [], 16
    # expansion, channels and blocks of each group; each stage ends before the map is halved
    for stride, groups in (
        (2, [(1, 8, 1), (6, 12, 2)]),
        (4, [(6, 16, 3)]),
        (8, [(6, 32, 4), (6, 48, 3)]),
        (16, [(6, 80, 3), (6, 160, 1)]),
    ):
        blocks: list[nn.Module] = []
        for expansion, channels, depth in groups:
            for _ in range(depth):
                step = 2 if stride > 2 and not blocks else 1
                blocks.append(_Block(before, channels, step, expansion))
                before = channels
        stages.append(Stage(nn.Sequential(*blocks), stride, before))
    stages.append(Stage(Conv2dNormActivation(before, 1280, 1), 16, 1280, "final"))
    return fill_convolutions(CifarBackbone(Conv2dNormActivation(3, 16, 3, 2), stages))

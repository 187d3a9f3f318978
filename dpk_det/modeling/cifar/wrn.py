"""Wide ResNets (Zagoruyko and Komodakis 2016, arXiv:1605.07146), without dropout."""

from torch import Tensor, nn

from dpk_det.modeling.cifar.base import CifarBackbone, Stage, fill_convolutions


class _Block(nn.Module):
    """Two convolutions, each after a norm and a ReLU, and a shortcut around them."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = None
        if before != channels:
            self.shortcut = nn.Conv2d(before, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        residual = self.conv2(self.bn2(self.conv1(active)).relu())
        return residual + (self.shortcut(active) if self.shortcut else x)


def wrn(depth: int, width: int) -> CifarBackbone:
    """Build three stages of (depth - 4) / 6 blocks each, with strides 1, 2 and 4.

    The last map is the output of the last norm and ReLU, which the classifier reads. The other
    maps are the sums that their last blocks return, without norm or ReLU.

    Args:
        depth: number of layers with weights.
        width: factor on 16, 32 and 64 channels.
    """
    stages, before = [], 16
    for stride, channels in ((1, 16 * width), (2, 32 * width), (4, 64 * width)):
        blocks = [_Block(before, channels, 1 if stride == 1 else 2)]
        blocks += [_Block(channels, channels, 1) for _ in range((depth - 4) // 6 - 1)]
        if stride == 4:
            blocks += [nn.BatchNorm2d(channels), nn.ReLU()]
        stages.append(Stage(nn.Sequential(*blocks), stride, channels))
        before = channels
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    return fill_convolutions(CifarBackbone(stem, stages))

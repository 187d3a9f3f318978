"""The base of the CIFAR networks: a stem, and stages that give one feature map each."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from dpk_det.modeling.maps import MapsByName


@dataclass
class Stage:
    """A part of a network that gives one feature map.

    Attributes:
        module: computes this map from the previous map.
        stride: image pixels per cell of the map.
        channels: of the map.
        name: of the map; "" means stage1, stage2, ... by position.
    """

    module: nn.Module
    stride: int
    channels: int
    name: str = ""


class CifarBackbone(MapsByName):
    """A network without its classifier. The classifier reads the mean over the last map's cells.

    Args:
        stem: computes the first stage's input from the images.
        stages: in order; each gives one map.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[Stage]) -> None:
        named = {stage.name or f"stage{i}": stage for i, stage in enumerate(stages, 1)}
        super().__init__(
            {k: ShapeSpec(channels=x.channels, stride=x.stride) for k, x in named.items()}
        )
        self.stem = stem
        for name, stage in named.items():
            self.add_module(name, stage.module)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to maps (B, C, H / stride, W / stride) by name, finest first."""
        x = self.stem(x)
        maps = {}
        for name in self.output_shape():
            maps[name] = x = self.get_submodule(name)(x)
        return maps


def fill_convolutions(network: CifarBackbone) -> CifarBackbone:
    """Initialise convolutions in place as He et al. (2015), by fan-out, with biases of 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network

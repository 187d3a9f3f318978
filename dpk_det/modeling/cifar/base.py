"""What the CIFAR networks share: a stem and stages, each of which gives a map."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from dpk_det.modeling.maps import MapsByName


@dataclass
class Stage:
    """A part of a network.

    Attributes:
        module: from the map before to its own. stride: pixels a cell of its map.
        channels: of its map. name: of its map; "": stage1, stage2, ... by its place.
    """

    module: nn.Module
    stride: int
    channels: int
    name: str = ""


class CifarBackbone(MapsByName):
    """A network without its classifier, which reads the mean over the cells of the last map.

    Args:
        stem: from images to what the first stage takes. stages: in order, those that give maps.
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
        """Images (B, 3, H, W) to maps (B, C, H / stride, W / stride) by name, finest first."""
        x = self.stem(x)
        maps = {}
        for name in self.output_shape():
            maps[name] = x = self.get_submodule(name)(x)
        return maps


def fill_convolutions(network: CifarBackbone) -> CifarBackbone:
    """Draw the weights of convolutions as He et al. (2015) do, for the maps that come out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network

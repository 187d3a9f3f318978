"""The base class of backbones that Detectron2 lacks: feature maps by name."""

from collections.abc import Mapping

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone


class MapsByName(Backbone):
    """A backbone that knows the width and stride of its feature maps.

    Args:
        maps: name -> width and stride of each feature map, from fine to coarse.
    """

    def __init__(self, maps: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        self._maps = dict(maps)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the width and stride of each feature map by name."""
        return dict(self._maps)

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride. Image sides must be multiples of it, so that the maps fit."""
        return max(shape.stride for shape in self._maps.values())

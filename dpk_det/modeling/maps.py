"""The base of backbones that are no part of Detectron2's: maps by name."""

from collections.abc import Mapping

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone


class MapsByName(Backbone):
    """A backbone that knows its maps.

    Args:
        maps: width and stride of each map, from fine to coarse.
    """

    def __init__(self, maps: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        self._maps = dict(maps)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Width and stride of each map."""
        return dict(self._maps)

    @property
    def size_divisibility(self) -> int:
        """Sides of images have to be multiples of the coarsest stride, so that maps fit."""
        return max(shape.stride for shape in self._maps.values())

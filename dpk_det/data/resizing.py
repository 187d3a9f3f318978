"""Check whether an image can be resized for a model."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from dpk_det.architectures import classifies


def fits(cfg: CfgNode, name: str) -> Callable[[int, int], bool]:
    """Return a function of (width, height) that tells whether such an image can be resized.

    It checks training and evaluation, as far as ``cfg`` uses dataset ``name`` for them.
    """
    return _fits_classifier(cfg) if classifies(cfg) else _fits_detector(cfg, name)


def _fits_detector(cfg: CfgNode, name: str) -> Callable[[int, int], bool]:
    node, sides = cfg.INPUT, []
    if name in cfg.DATASETS.TRAIN:
        sides += [(side, node.MAX_SIZE_TRAIN) for side in node.MIN_SIZE_TRAIN]
    if name in cfg.DATASETS.TEST:
        sides.append((node.MIN_SIZE_TEST, node.MAX_SIZE_TEST))
    return lambda width, height: all(
        min(ResizeShortestEdge.get_output_shape(height, width, side, longest)) > 0
        for side, longest in sides
        if side > 0  # otherwise Detectron2 does not resize
    )


def _fits_classifier(cfg: CfgNode) -> Callable[[int, int], bool]:
    node = cfg.INPUT.IMAGES
    shorter = node.SIZE if node.IN_MEMORY else node.RESIZE_TEST
    # the whole image is resized before its middle is cut out
    return lambda width, height: (
        shorter * shorter * max(width, height) / min(width, height) <= 2 * Image.MAX_IMAGE_PIXELS
    )

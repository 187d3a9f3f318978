"""What the backbones of ready-made networks share: names of maps, and checks of what they take."""

import logging
import math
from collections.abc import Sequence

from detectron2.config import CfgNode

NAMES = ("res2", "res3", "res4", "res5")
"""Of the maps that a detector usually reads."""

PROBE = (64, 96)
"""Height and width of an image that tells what a network's maps are like."""

logger = logging.getLogger(__name__)


def map_name(stride: int) -> str:
    """As Detectron2's ResNet names its maps: res2 has stride 4."""
    return f"res{int(math.log2(stride))}"


def check_statistics(
    cfg: CfgNode, network: str, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Warn where images are not normalised as those that weights were trained on.

    Args:
        network: what the warning calls it. mean, std: of its RGB images of 0 to 1.
    """
    mean, std = ([round(255 * x, 3) for x in values] for values in (mean, std))
    given = (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    near = all(
        math.isclose(x, y, abs_tol=0.5)
        for one, other in zip(given, (mean, std), strict=True)
        for x, y in zip(one, other, strict=True)
    )
    if not near or cfg.INPUT.FORMAT != "RGB":
        logger.warning(
            "%s was trained with other images than it will be given: set MODEL.PIXEL_MEAN "
            'to %s, MODEL.PIXEL_STD to %s and INPUT.FORMAT to "RGB".',
            network,
            mean,
            std,
        )

"""What is to be known of photos and objects before sizes and schedules are chosen."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpk_det.errors import UserError


@dataclass(frozen=True)
class Measures:
    """Of photos to train on.

    Attributes:
        classes: names by ascending id. num_images, num_objects: crowds are not counted.
        short, aspect: median shorter side in pixels, and what 95 % of the photos have at most as
            longer side over shorter.
        sizes: roots of the boxes' areas in pixels that 5, 25 and 50 % of the objects fall below.
        crowded: objects that 99 % of the photos have at most. masks: whether all objects have one.
    """

    classes: list[str]
    num_images: int
    num_objects: int
    short: int
    aspect: float
    sizes: tuple[float, float, float]
    crowded: int
    masks: bool


def measure(content: dict[str, Any]) -> Measures:
    """Measure the content of a COCO JSON file.

    Raises:
        UserError: it has no object.
    """
    objects = [x for x in content.get("annotations", []) if not x.get("iscrowd", 0)]
    if not objects or not content["images"]:
        raise UserError("There is no object to learn from: annotate some.")
    sides = np.array([(x["width"], x["height"]) for x in content["images"]], float)
    boxes = np.array([x["bbox"] for x in objects], float)
    _, counts = np.unique([x["image_id"] for x in objects], return_counts=True)
    sizes = np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 0))
    return Measures(
        classes=[x["name"] for x in sorted(content["categories"], key=lambda x: x["id"])],
        num_images=len(sides),
        num_objects=len(objects),
        short=int(np.median(sides.min(1))),
        aspect=float(np.quantile(sides.max(1) / sides.min(1), 0.95)),
        sizes=tuple(np.quantile(sizes, (0.05, 0.25, 0.5)).tolist()),
        crowded=int(np.quantile(counts, 0.99)),
        masks=all(x.get("segmentation") for x in objects),
    )

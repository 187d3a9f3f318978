"""Measures photos and objects, from which sizes and schedules are chosen."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpk_det.errors import UserError


@dataclass(frozen=True)
class Measures:
    """Measures of the training photos.

    Attributes:
        classes: names by ascending id.
        num_images: number of photos.
        num_objects: number of objects; crowds are not counted.
        short: median shorter side in pixels.
        aspect: 95 % quantile of longer side over shorter side.
        sizes: 5, 25 and 50 % quantiles of the roots of the boxes' areas, in pixels.
        crowded: 99 % quantile of the number of objects, over photos with objects.
        masks: whether all objects have a mask.
        run_lengths: whether the mask of an object is a run-length code, which is no polygon.
    """

    classes: list[str]
    num_images: int
    num_objects: int
    short: int
    aspect: float
    sizes: tuple[float, float, float]
    crowded: int
    masks: bool
    run_lengths: bool = False


def measure(content: dict[str, Any]) -> Measures:
    """Measure the content of a COCO JSON file.

    Raises:
        UserError: if it has no object or no photo.
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
        run_lengths=any(isinstance(x.get("segmentation"), dict) for x in objects),
    )

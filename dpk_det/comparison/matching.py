"""Right and wrong detections and missed objects of each photo, by COCO's matching."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IOU = 0.5
"""Smallest IoU at which a detection matches an object."""


@dataclass(frozen=True)
class Box:
    """An object or a detection on a photo.

    Attributes:
        corner: (x, y) in the photo's pixels.
        size: (width, height) in the photo's pixels.
        name: name of the class.
        kind: "object"; "right" or "wrong" for a detection; "missed" for an object without a match.
        score: score of a detection; None for an object.
    """

    corner: tuple[float, float]
    size: tuple[float, float]
    name: str
    kind: str
    score: float | None = None


def as_coco(content: Mapping[str, Any]) -> COCO:
    """Return pycocotools' index of a dataset's content."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def match(truth: COCO, detections: Sequence[Mapping[str, Any]]) -> dict[int, list[Box]]:
    """Match detections with objects, image by image and class by class.

    Args:
        truth: the dataset.
        detections: detections on this dataset, in COCO's results format.

    Returns:
        Image id to its detections and missed objects. Crowds, and detections in them, are left out.
    """
    shown = [{**x, "id": i} for i, x in enumerate(detections, 1)]
    for x in shown:
        x["area"], x["iscrowd"] = x["bbox"][2] * x["bbox"][3], 0
    known = {"images": truth.dataset["images"], "categories": truth.dataset["categories"]}
    judge = COCOeval(truth, as_coco({**known, "annotations": shown}), "bbox")
    judge.params.iouThrs = [IOU]
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.params.maxDets = [max(len(shown), 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
    names = {x["id"]: x["name"] for x in truth.dataset["categories"]}
    boxes: dict[int, list[Box]] = defaultdict(list)
    for found in filter(None, judge.evalImgs):
        image, name = found["image_id"], names[found["category_id"]]
        matched = zip(found["dtIds"], found["dtMatches"][0], found["dtIgnore"][0], strict=True)
        for id_, match_, ignored in matched:
            if not ignored:
                x = shown[id_ - 1]
                kind = "right" if match_ else "wrong"
                boxes[image].append(_box(x, name, kind, x["score"]))
        objects = zip(found["gtIds"], found["gtMatches"][0], found["gtIgnore"], strict=True)
        for id_, match_, ignored in objects:
            if not match_ and not ignored:
                boxes[image].append(_box(truth.anns[id_], name, "missed"))
    return boxes


def objects(truth: COCO, image: int) -> list[Box]:
    """Return the objects of an image, without crowds."""
    names = {x["id"]: x["name"] for x in truth.dataset["categories"]}
    return [
        _box(x, names[x["category_id"]], "object")
        for x in truth.imgToAnns[image]
        if not x.get("iscrowd", 0)
    ]


def f1(boxes: Sequence[Box]) -> float:
    """Return the harmonic mean of precision and recall; 1 without any object or detection."""
    kinds = [box.kind for box in boxes]
    right = 2 * kinds.count("right")
    all_ = right + kinds.count("wrong") + kinds.count("missed")
    return right / all_ if all_ else 1.0


def _box(x: Mapping[str, Any], name: str, kind: str, score: float | None = None) -> Box:
    left, top, width, height = x["bbox"]
    return Box((left, top), (width, height), name, kind, score)

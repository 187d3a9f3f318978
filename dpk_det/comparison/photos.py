"""Photos of the evaluation on which two students differ most, with what each model found there."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.data.detection_utils import read_image

from dpk_det.comparison.matching import Box, as_coco, f1, match, objects
from dpk_det.comparison.run import Run

DETECTIONS = "coco_instances_results.json"
THRESHOLD = 0.5
MOST = 8
_SIDE = 480  # pixels of a photo's longer side on the page


@dataclass(frozen=True)
class View:
    """What one model found on a photo, or what is there.

    Attributes:
        title: of the model. f1: see :func:`~.matching.f1`; None of what is there.
        boxes: in the photo's pixels.
    """

    title: str
    f1: float | None
    boxes: list[Box]


@dataclass(frozen=True)
class Photo:
    """A photo and its views.

    Attributes:
        name: of the file. source: a JPEG as data URI. width, height: in pixels, of the file's.
    """

    name: str
    source: str
    width: int
    height: int
    views: list[View]


@dataclass(frozen=True)
class Photos:
    """The photos of a comparison.

    Attributes:
        titles: of plain student, distilled student, and teacher if its detections are here.
        seed: of the students. dataset: that was evaluated.
        better, equal, worse: photos on which the distilled student's F1 is higher, the same, lower.
        shown: those where it differs most.
    """

    titles: list[str]
    seed: int
    dataset: str
    better: int
    equal: int
    worse: int
    shown: list[Photo]


def compare_photos(
    runs: Mapping[str, Run],
    cfg: CfgNode,
    seed: int,
    most: int = MOST,
    threshold: float = THRESHOLD,
) -> Photos | None:
    """Compare two students photo by photo.

    Args:
        runs: title to finished run: the plain student, the distilled one and, if there is one,
            the teacher. cfg: of a student. seed: of the students. most: photos to show.
        threshold: score from which a detection counts.

    Returns:
        None where a student's detections are not here, or are no detections in COCO's format.
    """
    dataset = cfg.DATASETS.TEST[-1]  # whose detections were written last
    if MetadataCatalog.get(dataset).get("evaluator_type") not in ("coco", "coco_panoptic_seg"):
        return None
    read = {title: _detections(run) for title, run in runs.items()}
    detections = {title: found for title, found in read.items() if found is not None}
    plain, distilled = [*runs][:2]
    if not {plain, distilled} <= detections.keys():
        return None
    truth = as_coco(convert_to_coco_dict(dataset))
    files = {x["image_id"]: x["file_name"] for x in DatasetCatalog.get(dataset)}
    found = {title: match(truth, x, threshold) for title, x in detections.items()}
    gains = {
        image: f1(found[distilled].get(image, [])) - f1(found[plain].get(image, []))
        for image in files
    }
    # of those that differ as much, photos of many objects tell more
    order = sorted(gains, key=lambda x: (abs(gains[x]), len(truth.imgToAnns[x])), reverse=True)
    shown = []
    for image in order[:most]:
        views = [View("what is there", None, objects(truth, image))]
        for title, boxes in found.items():
            views.append(View(title, f1(boxes.get(image, [])), boxes.get(image, [])))
        if photo := _photo(files[image], views):
            shown.append(photo)
    return Photos(
        titles=[*found],
        seed=seed,
        dataset=dataset,
        better=sum(gain > 0 for gain in gains.values()),
        equal=sum(gain == 0 for gain in gains.values()),
        worse=sum(gain < 0 for gain in gains.values()),
        shown=shown,
    )


def _detections(run: Run) -> list[dict[str, Any]] | None:
    """Those of the evaluation at the end of a run; None if there are none or they are of later."""
    folder = run.folder / ("inference" if run.trains else "teacher/inference")
    path, results = folder / DETECTIONS, run.folder / run.results_file
    try:
        if path.stat().st_mtime > results.stat().st_mtime:  # other weights may have been evaluated
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _photo(file: str, views: list[View]) -> Photo | None:
    try:
        image = read_image(file, "BGR")
    except (OSError, ValueError):
        return None  # it was there when the models were evaluated
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return Photo(Path(file).name, source, width, height, views)

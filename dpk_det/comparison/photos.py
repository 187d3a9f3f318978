"""The photos on which two students differ most, with the detections of each model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.data.detection_utils import read_image

from dpk_det.comparison.matching import Box, as_coco, f1, match, objects
from dpk_det.comparison.pictures import as_uri
from dpk_det.comparison.run import Run
from dpk_det.errors import UserError

DETECTIONS = "coco_instances_results.json"
THRESHOLD = 0.5
MOST = 4
_SIDE = 480  # a photo's longer side on the page, in pixels


@dataclass(frozen=True)
class View:
    """The detections of one model on a photo, or the objects on it.

    Attributes:
        title: the model's title.
        f1: see :func:`~.matching.f1`; None for the objects.
        boxes: in the photo's pixels.
    """

    title: str
    f1: float | None
    boxes: list[Box]


@dataclass(frozen=True)
class Photo:
    """A photo and its views.

    Attributes:
        name: file name.
        source: a JPEG as data URI.
        width: pixels of the file's image.
        height: pixels of the file's image.
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
        pair: titles of the compared students.
        seed: seed of these students.
        dataset: name of the dataset.
        better: number of photos on which the second student has a higher F1.
        equal: number of photos with equal F1.
        worse: number of photos on which the second student has a lower F1.
        won: photos on which the second student leads most.
        lost: photos on which the first student leads most.
    """

    pair: tuple[str, str]
    seed: int
    dataset: str
    better: int
    equal: int
    worse: int
    won: list[Photo]
    lost: list[Photo]


def compare_photos(
    runs: Mapping[str, Run],
    pair: tuple[str, str],
    cfg: CfgNode,
    seed: int,
    most: int = MOST,
    threshold: float = THRESHOLD,
) -> Photos | None:
    """Compare two students photo by photo.

    Args:
        runs: title to finished run, for all models that are shown.
        pair: titles of the compared students; gains are of the second over the first.
        cfg: config of a student.
        seed: seed of the students.
        most, threshold: photos of each kind, and the smallest score that counts.

    Returns:
        None if the dataset or a student's detections are absent, or not in COCO's format.
    """
    dataset = cfg.DATASETS.TEST[-1]  # its detections were written last
    if MetadataCatalog.get(dataset).get("evaluator_type") not in ("coco", "coco_panoptic_seg"):
        return None
    read = {title: _detections(run, threshold) for title, run in runs.items()}
    detections = {title: found for title, found in read.items() if found is not None}
    first, second = pair
    if not {first, second} <= detections.keys():
        return None
    try:
        truth = as_coco(convert_to_coco_dict(dataset))
    except (OSError, UserError):  # the trainings may have been made on another machine
        return None
    files = {x["image_id"]: x["file_name"] for x in DatasetCatalog.get(dataset)}
    found = {title: match(truth, x) for title, x in detections.items()}
    gains = {
        image: f1(found[second].get(image, [])) - f1(found[first].get(image, [])) for image in files
    }

    def shown(sign: int) -> list[Photo]:
        # At the same difference, a photo with more objects tells more.
        differ = [image for image in files if sign * gains[image] > 0]
        differ.sort(key=lambda x: (abs(gains[x]), len(truth.imgToAnns[x])), reverse=True)
        photos = (_photo(files[x], views(x)) for x in differ)
        return [*islice(filter(None, photos), most)]

    def views(image: int) -> Iterator[View]:
        yield View("what is there", None, objects(truth, image))
        for title, boxes in found.items():
            yield View(title, f1(boxes.get(image, [])), boxes.get(image, []))

    return Photos(
        pair=pair,
        seed=seed,
        dataset=dataset,
        better=sum(gain > 0 for gain in gains.values()),
        equal=sum(gain == 0 for gain in gains.values()),
        worse=sum(gain < 0 for gain in gains.values()),
        won=shown(1),
        lost=shown(-1),
    )


def _detections(run: Run, threshold: float) -> list[dict[str, Any]] | None:
    """Return the detections of a run's final evaluation that reach the threshold.

    Returns None if the file is absent, or newer than the results.
    """
    folder = run.folder / ("inference" if run.trains else "teacher/inference")
    path, results = folder / DETECTIONS, run.folder / run.results_file
    try:
        # A later evaluation may have used other weights.
        if path.stat().st_mtime > results.stat().st_mtime:
            return None
        return [x for x in json.loads(path.read_bytes()) if x["score"] >= threshold]
    except (OSError, ValueError):
        return None


def _photo(file: str, views: Iterable[View]) -> Photo | None:
    try:
        image = read_image(file, "BGR")
    except (OSError, ValueError):
        return None  # removed since the evaluation
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return Photo(Path(file).name, as_uri(small, ".jpg"), width, height, [*views])

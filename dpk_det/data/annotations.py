"""Checks of what stands in a COCO JSON file, before training or evaluation stumbles over it."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Struct

from dpk_det.data.coco_format import Annotation, Coco, RunLengths, describe
from dpk_det.errors import UserError

Entries = Iterable[Struct]

_FAR = 10**6  # pixels; pycocotools walks along every side of a polygon, and dies on the way


@dataclass(frozen=True)
class Use:
    """What a dataset is for.

    Attributes:
        trained, evaluated: on it. masks: the model makes masks. polygons: and learns from polygons,
            not from masks of pixels. keypoints: that the model has; None: it has none.
        keeps_empty: training keeps images without an object.
    """

    trained: bool = False
    evaluated: bool = False
    masks: bool = False
    polygons: bool = True
    keypoints: int | None = None
    keeps_empty: bool = False


def check_annotations(coco: Coco, json_file: str, use: Use) -> None:
    """Check a COCO JSON file as Detectron2 and pycocotools read it.

    What they leave out of training in silence is logged as a warning: annotations of images that
    are not listed, boxes without area in their image, and polygons of less than three points.
    So is what gives no figure in evaluation: classes without an object.

    Args:
        coco: the file's content. json_file: its path, for the errors. use: what it is for.

    Raises:
        UserError: the first thing found wrong: ids that are not unique or of two types, two
            categories of one name, an unknown category, a box of negative size, a field that
            evaluation needs, a mask or keypoints that the model cannot take, nothing to learn.
    """
    _Checks(coco, json_file, use).run()


class _Checks:
    def __init__(self, coco: Coco, json_file: str, use: Use) -> None:
        self.file, self.use, self.coco = json_file, use, coco
        self.kept: list[Annotation] = []  # by training, of the objects
        self.images = {x.id: x for x in coco.images}
        self.annotations = [] if coco.annotations is UNSET else coco.annotations
        self.objects = [x for x in self.annotations if x.iscrowd in (0, UNSET)]

    def run(self) -> None:
        self.check_images()
        self.check_categories()
        if self.coco.annotations is UNSET:
            self.check_absence()
            return
        self.check_ids()
        self.check_fields()
        self.check_boxes()
        self.check_masks()
        if self.use.keypoints is not None:
            self.check_keypoints(self.use.keypoints)
        self.check_listed()

    # -------------------------------------------------------------- the lists

    def check_images(self) -> None:
        images = self.coco.images
        if not images:
            raise UserError(f"{self.file} lists no images: add them.")
        kinds = {type(x.id): x for x in images}
        if len(kinds) > 1:
            numbered, named = kinds[int], kinds[str]
            raise UserError(
                f"{self.file}: images have numbers and texts for ids, {numbered.id!r} and "
                f"{named.id!r}: give all of them the one or the other."
            )
        self._find("images share their id", _doubled(images, "id"), "give each its own")
        self._warn(
            _doubled(images, "file_name"), images, "images share their file with another image"
        )

    def check_categories(self) -> None:
        categories = self.coco.categories
        for key in ("id", "name"):
            doubled = _doubled(categories, key)
            self._find(f"categories share their {key}", doubled, "give each its own")

    def check_absence(self) -> None:
        if self.use.trained:
            raise UserError(f"{self.file} has no list of annotations to learn from: add it.")
        logging.getLogger(__name__).warning(
            "%s has no list of annotations: predictions are written, and nothing is measured.",
            self.file,
        )

    def check_ids(self) -> None:
        if "minival" not in self.file:  # COCO 2014's; Detectron2 lets them pass as well
            doubled = _doubled(self.annotations, "id")
            self._find("annotations share their id", doubled, "give each its own")
        kind = type(self.coco.images[0].id)
        self._find(
            f"annotation(s) whose image_id is {'no text' if kind is str else 'a text'}, unlike the "
            "ids of images",
            (x for x in self.annotations if type(x.image_id) is not kind),
            "write both alike",
        )
        known = {x.id for x in self.coco.categories}
        names = ", ".join(map(str, sorted(known)[:5])) + ", ..." * (len(known) > 5)
        self._find(
            "annotation(s) of a category that is not listed",
            (x for x in self.annotations if x.category_id not in known),
            f"correct category_id to one of 'categories' ({names})",
        )
        if self.use.evaluated:
            self._find(
                "annotation(s) of id 0, which pycocotools takes for no object",
                (x for x in self.annotations if x.id == 0),
                "count annotations from 1",
            )

    def check_fields(self) -> None:
        self._find(
            "annotation(s) with 'ignore', which Detectron2 does not take",
            (x for x in self.annotations if x.ignore != 0),
            "write iscrowd: 1 instead",
        )
        if self.use.evaluated:
            for key, absent in (("area", None), ("iscrowd", UNSET)):
                wrong = (x for x in self.annotations if getattr(x, key) is absent)
                self._find(f"annotation(s) without {key!r}, to evaluate", wrong, "add it")

    def check_boxes(self) -> None:
        boxes = np.array([x.bbox for x in self.annotations]).reshape(-1, 4)
        negative = (boxes[:, 2:] < 0).any(1) | (np.abs(boxes) > 10**7).any(1)
        self._find(
            "box(es) of negative size or far from any image",
            (self.annotations[i] for i in np.flatnonzero(negative)),
            "give bbox as [x, y, width, height] in pixels",
        )
        sizes = [self.images.get(x.image_id) for x in self.annotations]
        sizes = np.array([(x.width, x.height) if x else (np.inf, np.inf) for x in sizes])
        ends = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes.reshape(-1, 2))
        empty = (ends <= np.maximum(boxes[:, :2], 0)).any(1)
        what = "boxes have no area within their image; training leaves them out"
        self._warn(np.flatnonzero(empty), self.annotations, what)
        pairs = zip(self.annotations, empty.tolist(), strict=True)
        self.kept = [x for x, is_empty in pairs if not is_empty and x.iscrowd in (0, UNSET)]

    # -------------------------------------------------------------- masks and keypoints

    def check_masks(self) -> None:
        use = self.use
        if use.masks:
            self._find(
                "annotation(s) without 'segmentation'",
                # pycocotools reads those of crowds too
                (
                    x
                    for x in (self.annotations if use.evaluated else self.objects)
                    if not x.segmentation
                ),
                "add polygons or a run-length code, or set MODEL.MASK_ON to False",
            )
        if use.masks and use.trained and use.polygons:
            self._find(
                "mask(s) as run-length code, where INPUT.MASK_FORMAT is 'polygon'",
                (x for x in self.objects if isinstance(x.segmentation, RunLengths)),
                "set INPUT.MASK_FORMAT to bitmask",
            )
        self._find(
            "mask(s) with a polygon of an odd number of coordinates, or none of three points",
            (x for x in self.annotations if _is_no_polygon(x.segmentation)),
            "give polygons as [x, y, x, y, x, y, ...]",
        )
        self._find(
            "mask(s) with a polygon far from any image",
            (
                x
                for x in self.annotations
                if any(max(p) > _FAR or min(p) < -_FAR for p in _polygons(x) if p)
            ),
            "give its points in pixels",
        )
        short = (p for x in self.annotations for p in _polygons(x) if len(p) < 6)
        self._warn(list(short), None, "polygons have less than three points and are left out")
        if use.masks:
            self._find(
                "run-length code(s) that do not fill their image",
                (x for x in self.annotations if not self._fills(x)),
                "give 'size' as the image's [height, width] and 'counts' that add up to its pixels",
            )

    def _fills(self, annotation: Annotation) -> bool:
        code, image = annotation.segmentation, self.images.get(annotation.image_id)
        if not isinstance(code, RunLengths) or image is None:
            return True
        height, width = code.size
        return (height, width) == (image.height, image.width) and (
            _num_pixels(code.counts) == height * width
        )

    def check_keypoints(self, number: int) -> None:
        use = self.use
        # pycocotools reads those of crowds too
        wanting = self.annotations if use.evaluated else self.objects
        self._find(
            f"annotation(s) without {number} keypoints",
            (x for x in wanting if len(x.keypoints or ()) != 3 * number),
            f"give keypoints as {3 * number} numbers, [x, y, visibility, ...], or correct "
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
        )
        if use.evaluated:
            wrong = (x for x in self.annotations if x.num_keypoints is None)
            self._find("annotation(s) without 'num_keypoints', to evaluate", wrong, "add it")

    # -------------------------------------------------------------- what is left

    def check_listed(self) -> None:
        astray = [x for x in self.annotations if x.image_id not in self.images]
        what = "annotations belong to images that are not listed; training leaves them out"
        self._warn(astray, self.annotations, what)
        listed = [x for x in self.objects if x.image_id in self.images]
        if not listed and self.use.evaluated:
            raise UserError(
                f"{self.file} has no annotation of a listed image, so that there is nothing to "
                "measure: add them, or take 'annotations' out to predict only."
            )
        if self.use.trained and not (
            self.use.keeps_empty or any(x.image_id in self.images for x in self.kept)
        ):
            raise UserError(
                f"{self.file} has no object within a listed image, so that there is nothing "
                "to learn: add annotations, with iscrowd 0."
            )
        if self.use.evaluated:
            found = {x.category_id for x in listed}
            absent = [x.name for x in self.coco.categories if x.id not in found]
            what = f"categories have no object, so that their AP is not a number ({absent[:1]})"
            self._warn(absent, self.coco.categories, what)

    # -------------------------------------------------------------- sentences

    def _find(self, what: str, wrong: Entries, remedy: str) -> None:
        found = list(wrong)
        if found:
            first = describe(msgspec.structs.asdict(found[0]))
            raise UserError(f"{self.file}: {len(found)} {what}, first {{{first}}}: {remedy}.")

    def _warn(self, found: Any, of: Any, what: str) -> None:
        if len(found):
            count = len(found) if of is None else f"{len(found)} of {len(of)}"
            logging.getLogger(__name__).warning("%s: %s %s.", self.file, count, what)


def _doubled(entries: Entries, key: str) -> list[Struct]:
    counts = Counter(getattr(x, key) for x in entries)
    if len(counts) == len(entries):
        return []
    return [x for x in entries if counts[getattr(x, key)] > 1]


def _polygons(annotation: Annotation) -> list[list[float]]:
    return annotation.segmentation if isinstance(annotation.segmentation, list) else []


def _is_no_polygon(segmentation: Any) -> bool:
    if not isinstance(segmentation, list) or not segmentation:
        return False
    lengths = [len(polygon) for polygon in segmentation]
    return max(lengths) < 6 or any(n % 2 for n in lengths)


def _num_pixels(counts: list[int] | str) -> int:
    """How many pixels a run-length code covers; -1 where it cannot be read.

    COCO's text holds 5 bits a character, lowest first; bit 6 says that more follow. From the fourth
    on a run is written as the difference to the one before the last.
    """
    if not isinstance(counts, str):
        return sum(counts)
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode():
        character -= 48
        if not 0 <= character < 64:
            return -1
        value |= (character & 31) << shift
        shift += 5
        if character & 32:
            continue
        if character & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return -1
        value = shift = 0
    return -1 if shift else sum(runs)

"""Check the content of a COCO JSON file before training or evaluation fails on it."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import UNSET, Struct

from dpk_det.data.coco_format import Annotation, Coco, RunLengths, describe
from dpk_det.data.masks import fills, is_far, is_no_polygon, polygons
from dpk_det.errors import UserError


@dataclass(frozen=True)
class Use:
    """How a model uses a dataset.

    Attributes:
        trained: the model is trained on it.
        evaluated: the model is evaluated on it.
        masks: the model predicts masks.
        polygons: the model learns masks from polygons, not from bitmasks.
        keypoints: number of keypoints of the model; None if it has none.
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

    A warning is logged for entries that they silently leave out of training: annotations of images
    that are not listed, boxes without area in their image, and polygons of fewer than three points.
    Images that share a file, and classes without an object to evaluate, also cause a warning.

    Args:
        coco: the file's content.
        json_file: the file's path, for the error messages.
        use: how the model uses the dataset.

    Raises:
        UserError: for the first mistake found: ids that are not unique or of two types, two
            categories with one name, an unknown category, a box of negative size, a missing field
            that evaluation needs, a mask or keypoints that the model cannot take, nothing to learn.
    """
    checks = _Checks(coco, json_file, use)
    checks.check_images()
    checks.check_categories()
    if coco.annotations is UNSET:
        checks.check_absence()
        return
    checks.check_ids()
    checks.check_fields()
    kept = checks.check_boxes()
    checks.check_polygons()
    if use.masks:
        checks.check_masks()
    if use.keypoints is not None:
        checks.check_keypoints(use.keypoints)
    checks.check_listed(kept)


class _Checks:
    def __init__(self, coco: Coco, json_file: str, use: Use) -> None:
        self.coco, self.file, self.use = coco, json_file, use
        self.images = {x.id: x for x in coco.images}
        self.annotations = [] if coco.annotations is UNSET else coco.annotations
        self.objects = [x for x in self.annotations if _is_object(x)]
        # their masks and keypoints are read; in evaluation pycocotools also reads those of crowds
        self.shown = self.annotations if use.evaluated else self.objects

    # -------------------------------------------------------------- the lists

    def check_images(self) -> None:
        images = self.coco.images
        if not images:
            raise UserError(f"{self.file} lists no images: add them.")
        kinds = {type(x.id): x.id for x in images}
        if len(kinds) > 1:
            raise UserError(
                f"{self.file}: images have numbers and texts for ids, {kinds[int]!r} and "
                f"{kinds[str]!r}: give all of them the one or the other."
            )
        self._refuse_doubled("images", images, "id")
        doubled = _doubled(images, "file_name")
        self._warn(doubled, "images share their file with another image", images)

    def check_categories(self) -> None:
        for key in ("id", "name"):
            self._refuse_doubled("categories", self.coco.categories, key)

    def check_absence(self) -> None:
        if self.use.trained:
            raise UserError(f"{self.file} has no list of annotations to learn from: add it.")
        logging.getLogger(__name__).warning(
            "%s has no list of annotations: predictions are written, and nothing is measured.",
            self.file,
        )

    def check_ids(self) -> None:
        if "minival" not in self.file:  # Detectron2 also accepts COCO 2014's repeated ids
            self._refuse_doubled("annotations", self.annotations, "id")
        kind = type(self.coco.images[0].id)
        self._refuse(
            f"annotation(s) whose image_id is {'no text' if kind is str else 'a text'}, unlike the "
            "ids of images",
            lambda x: type(x.image_id) is not kind,
            "write both alike",
        )
        known = {x.id for x in self.coco.categories}
        names = ", ".join(map(str, sorted(known)[:5])) + ", ..." * (len(known) > 5)
        self._refuse(
            "annotation(s) of a category that is not listed",
            lambda x: x.category_id not in known,
            f"correct category_id to one of 'categories' ({names})",
        )
        if self.use.evaluated:
            self._refuse(
                "annotation(s) of id 0, which pycocotools takes for no object",
                lambda x: x.id == 0,
                "count annotations from 1",
            )

    def check_fields(self) -> None:
        self._refuse(
            "annotation(s) with 'ignore', which Detectron2 does not take",
            lambda x: x.ignore != 0,
            "write iscrowd: 1 instead",
        )
        if self.use.evaluated:
            self._require("area", "iscrowd")

    def check_boxes(self) -> list[Annotation]:
        """Check the boxes and return the objects that training keeps."""
        boxes = np.array([x.bbox for x in self.annotations]).reshape(-1, 4)
        negative = (boxes[:, 2:] < 0).any(1) | (np.abs(boxes) > 10**7).any(1)
        self._refuse_found(
            "box(es) of negative size or far from any image",
            [self.annotations[i] for i in np.flatnonzero(negative)],
            "give bbox as [x, y, width, height] in pixels",
        )
        sizes = [self.images.get(x.image_id) for x in self.annotations]
        sizes = np.array([(x.width, x.height) if x else (np.inf, np.inf) for x in sizes])
        ends = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes.reshape(-1, 2))
        empty = (ends <= np.maximum(boxes[:, :2], 0)).any(1)
        what = "boxes have no area within their image; training leaves them out"
        self._warn(np.flatnonzero(empty), what, self.annotations)
        return [
            self.annotations[i] for i in np.flatnonzero(~empty) if _is_object(self.annotations[i])
        ]

    # -------------------------------------------------------------- masks and keypoints

    def check_polygons(self) -> None:
        self._refuse(
            "mask(s) with a polygon of an odd number of coordinates, or none of three points",
            lambda x: is_no_polygon(x.segmentation),
            "give polygons as [x, y, x, y, x, y, ...]",
        )
        self._refuse(
            "mask(s) with a polygon far from any image",
            lambda x: is_far(x.segmentation),
            "give its points in pixels",
        )
        short = [p for x in self.annotations for p in polygons(x.segmentation) if len(p) < 6]
        self._warn(short, "polygons have less than three points and are left out")

    def check_masks(self) -> None:
        self._refuse(
            "annotation(s) without 'segmentation'",
            lambda x: not x.segmentation,
            "add polygons or a run-length code, or set MODEL.MASK_ON to False",
            self.shown,
        )
        if self.use.trained and self.use.polygons:
            self._refuse(
                "mask(s) as run-length code, where INPUT.MASK_FORMAT is 'polygon'",
                lambda x: isinstance(x.segmentation, RunLengths),
                "set INPUT.MASK_FORMAT to bitmask",
                self.objects,
            )
        self._refuse(
            "run-length code(s) that do not fill their image",
            lambda x: not fills(x.segmentation, self.images.get(x.image_id)),
            "give 'size' as the image's [height, width] and 'counts' that add up to its pixels",
        )

    def check_keypoints(self, number: int) -> None:
        self._refuse(
            f"annotation(s) without {number} keypoints",
            lambda x: len(x.keypoints or ()) != 3 * number,
            f"give keypoints as {3 * number} numbers, [x, y, visibility, ...], or correct "
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
            self.shown,
        )
        if self.use.evaluated:
            self._require("num_keypoints")

    # -------------------------------------------------------------- what is left

    def check_listed(self, kept: Iterable[Annotation]) -> None:
        astray = [x for x in self.annotations if x.image_id not in self.images]
        what = "annotations belong to images that are not listed; training leaves them out"
        self._warn(astray, what, self.annotations)
        found = {x.category_id for x in self.objects if x.image_id in self.images}
        if self.use.evaluated and not found:
            raise UserError(
                f"{self.file} has no annotation of a listed image, so that there is nothing to "
                "measure: add them, or take 'annotations' out to predict only."
            )
        learns = self.use.keeps_empty or any(x.image_id in self.images for x in kept)
        if self.use.trained and not learns:
            raise UserError(
                f"{self.file} has no object within a listed image, so that there is nothing "
                "to learn: add annotations, with iscrowd 0."
            )
        if self.use.evaluated:
            absent = [x.name for x in self.coco.categories if x.id not in found]
            what = f"categories have no object, so that their AP is not a number ({absent[:1]})"
            self._warn(absent, what, self.coco.categories)

    # -------------------------------------------------------------- sentences

    def _refuse(
        self,
        what: str,
        is_wrong: Callable[[Annotation], bool],
        remedy: str,
        among: Iterable[Annotation] | None = None,
    ) -> None:
        """Raise an error if any of the given annotations (by default all) is wrong."""
        among = self.annotations if among is None else among
        self._refuse_found(what, [x for x in among if is_wrong(x)], remedy)

    def _require(self, *keys: str) -> None:
        for key in keys:
            absent = [x for x in self.annotations if getattr(x, key) in (None, UNSET)]
            self._refuse_found(f"annotation(s) without {key!r}, to evaluate", absent, "add it")

    def _refuse_doubled(self, what: str, entries: Sequence[Struct], key: str) -> None:
        self._refuse_found(f"{what} share their {key}", _doubled(entries, key), "give each its own")

    def _refuse_found(self, what: str, found: Sequence[Struct], remedy: str) -> None:
        if found:
            first = describe(msgspec.structs.asdict(found[0]))
            raise UserError(f"{self.file}: {len(found)} {what}, first {{{first}}}: {remedy}.")

    def _warn(self, found: Sized, what: str, among: Sized = ()) -> None:
        if len(found):
            count = f"{len(found)} of {len(among)}" if among else len(found)
            logging.getLogger(__name__).warning("%s: %s %s.", self.file, count, what)


def _is_object(annotation: Annotation) -> bool:
    return annotation.iscrowd in (0, UNSET)


def _doubled(entries: Sequence[Struct], key: str) -> list[Struct]:
    counts = Counter(getattr(x, key) for x in entries)
    if len(counts) == len(entries):
        return []
    return [x for x in entries if counts[getattr(x, key)] > 1]

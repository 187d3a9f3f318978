"""Checks of what stands in a COCO JSON file, before training or evaluation stumbles over it."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dpk_det.errors import UserError


def check_annotations(
    content: dict[str, Any],
    json_file: str,
    image_root: str | None,
    evaluated: bool,
    masks: bool = False,
) -> None:
    """Check a COCO JSON file as Detectron2 and pycocotools read it.

    What they leave out of training in silence is logged as a warning: annotations of images that
    are not listed, and boxes without area or outside their image.

    Args:
        content: of the file, its categories readable. json_file: for the errors.
        image_root: folder of the images; None or an address ("://") is not looked into.
        evaluated: whether the dataset is evaluated, which takes ``area`` and ``iscrowd`` as well.
        masks: whether the model makes masks: then each object, crowds aside, needs its own.

    Raises:
        UserError: the first thing found wrong: a list or a field that is absent, ids that are not
            unique, an unknown category, a box that is not four numbers, an object without a mask,
            an image without size or file.
    """

    def check(what: str, wrong: Iterable[dict[str, Any]], remedy: str) -> None:
        found = list(wrong)
        if found:
            entry = ", ".join(f"{k}: {found[0][k]!r}" for k in _TELLING if k in found[0])
            raise UserError(f"{json_file}: {len(found)} {what}, first {{{entry}}}: {remedy}.")

    for key in ("images", "annotations"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise UserError(f"{json_file} has no list of {key}, each with its fields: add one.")
    images, annotations = content["images"], content["annotations"]
    for key in ("id", "file_name", "height", "width"):
        check(f"image(s) without {key!r}", _without(images, key), "add it")
    check(
        "image(s) of no size",
        (x for x in images if not all(_is_size(x[key]) for key in ("height", "width"))),
        "give height and width as whole numbers of pixels",
    )
    for key in ("id", "image_id", "category_id", "bbox", *(("area", "iscrowd") * evaluated)):
        check(f"annotation(s) without {key!r}", _without(annotations, key), "add it")
    for name in ("images", "annotations", "categories"):
        check(f"{name} share their id", _doubled(content[name]), "give each its own")
    known = {category["id"] for category in content["categories"]}
    check(
        "annotation(s) of a category that is not listed",
        (x for x in annotations if x["category_id"] not in known),
        f"correct category_id to one of 'categories' ({', '.join(map(repr, sorted(known)[:5]))}"
        f"{', ...' if len(known) > 5 else ''})",
    )
    check(
        "box(es) that are not four numbers",
        (x for x in annotations if not _is_box(x["bbox"])),
        "give bbox as [x, y, width, height] in pixels",
    )
    check(
        "annotation(s) without 'segmentation'",
        (x for x in annotations if masks and not (x.get("segmentation") or x.get("iscrowd"))),
        "add polygons or a run-length code, or set MODEL.MASK_ON to False",
    )
    check(
        "annotation(s) with 'ignore', which Detectron2 does not take",
        (x for x in annotations if x.get("ignore")),
        "write iscrowd: 1 instead",
    )
    if image_root and "://" not in image_root:
        check(
            f"image(s) without a file below {image_root}",
            (x for x in images if not os.path.isfile(os.path.join(image_root, x["file_name"]))),
            "correct file_name or the image folder",
        )
    _warn(images, annotations, json_file)


# what an error shows of an entry
_TELLING = ("id", "image_id", "file_name", "name", "height", "width", "category_id", "bbox")


def _without(entries: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [x for x in entries if key not in x]


def _doubled(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(x["id"] for x in entries)
    return [x for x in entries if counts[x["id"]] > 1]


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and value >= 1 and float(value).is_integer()


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and math.isfinite(v) for v in box)
    )


def _warn(images: list[dict], annotations: list[dict], json_file: str) -> None:
    sizes = {x["id"]: (x["width"], x["height"]) for x in images}

    def is_empty(x: dict) -> bool:
        (x0, y0, w, h), (width, height) = x["bbox"], sizes[x["image_id"]]
        return min(x0 + w, width) <= max(x0, 0) or min(y0 + h, height) <= max(y0, 0)

    listed = [x for x in annotations if x["image_id"] in sizes]
    for count, what in (
        (len(annotations) - len(listed), "annotations belong to images that are not listed"),
        (sum(map(is_empty, listed)), "boxes have no area within their image"),
    ):
        if count:
            logging.getLogger(__name__).warning(
                "%s: %d of %d %s; training leaves them out.",
                json_file,
                count,
                len(annotations),
                what,
            )

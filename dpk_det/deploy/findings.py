"""Collects findings and writes them to one JSON file in COCO's format."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dpk_det.errors import UserError
from dpk_det.files import write_whole

NAMED = 10
"""Most failed files that the error names; the JSON file lists all."""


class Findings:
    """A complete COCO dataset, with the lists images, annotations and categories.

    A video's frames are images with the video's name and the number ``frame``, from 0. A detector's
    annotation is a detection: the usual fields and a ``score``, masks run-length encoded, keypoints
    with a score instead of visibility. A classifier's annotation is one of the most likely classes,
    with only its ``score``. ``info["failed"]`` gives the files that failed, with the reason.

    pycocotools opens the file directly, with images and class names. ``COCO.loadRes`` takes the
    list of annotations of a detector alone.

    Args:
        categories: category id -> name, in the order of the model's classes.
        root: folder above all images; their names are relative to it.
        info: further fields of ``info``.
    """

    def __init__(self, categories: dict[int, str], root: Path, **info: Any) -> None:
        self._ids, self._root = list(categories), root
        self._failed: dict[str, str] = {}
        self._content: dict[str, Any] = {
            "info": {**info, "images": str(root), "failed": self._failed},
            "images": [],
            "annotations": [],
            "categories": [{"id": id_, "name": name} for id_, name in categories.items()],
        }

    def add(
        self, file: Path, image: np.ndarray, found: Iterable[dict[str, Any]], **extra: Any
    ) -> None:
        """Add an image (H, W, 3) and what was found in it.

        Args:
            file: the image's file, or the video's.
            image: used for its size.
            found: annotations with the class's number as ``category_id``. Here it becomes the
                category's id, and the annotations get their ids.
            extra: further fields of the image.
        """
        images, annotations = self._content["images"], self._content["annotations"]
        image_id = len(images) + 1
        size = {"height": image.shape[0], "width": image.shape[1]}
        images.append({"id": image_id, "file_name": self._name(file), **size, **extra})
        for x in found:
            ids = {"image_id": image_id, "category_id": self._ids[x["category_id"]]}
            annotations.append({"id": len(annotations) + 1, **x, **ids})

    def add_failure(self, file: Path, reason: Exception) -> None:
        """Record a file that failed, and the reason."""
        self._failed[self._name(file)] = " ".join(str(reason).split())

    def write(self, path: Path) -> tuple[int, int]:
        """Write the complete JSON file; return its numbers of annotations and images."""
        write_whole(path, json.dumps(self._content))
        return len(self._content["annotations"]), len(self._content["images"])

    def check_failures(self, total: int, done: str) -> None:
        """Check that no file failed.

        Args:
            total: number of files.
            done: sentence that says what was done.

        Raises:
            UserError: if any file failed; it names these files and ends with ``done``.
        """
        if self._failed:
            first = list(self._failed.items())[:NAMED]
            named = ", ".join(f"{self._root / name} ({reason})" for name, reason in first)
            more = f" and {len(self._failed) - NAMED} more" if len(self._failed) > NAMED else ""
            raise UserError(
                f"{len(self._failed)} of {total} files failed, {named}{more}: mend or leave out "
                f"these; the others are done. {done}"
            )

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()

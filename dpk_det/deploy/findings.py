"""What was found, as one JSON file in COCO's format."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dpk_det.errors import UserError
from dpk_det.files import write_whole

NAMED = 10
"""Files that failed are named in the last sentence, up to this many; all are in the JSON file."""


class Findings:
    """A COCO dataset of its own, with the lists images, annotations and categories.

    A video's frames are images of its name, told apart by ``frame``, from 0. An annotation is a
    detection: its ``score`` beside the usual fields, masks run-length encoded, keypoints with their
    score in place of the visibility; a classifier's is one of the likeliest classes, with its
    ``score`` alone. Files that failed stand with the reason in ``info["failed"]``.

    pycocotools opens it as it is, so images and class names go along; a detector's list of
    annotations alone is what ``COCO.loadRes`` takes.

    Args:
        categories: category id -> name, in the order of the model's classes.
        root: folder above all images, from which their names count. info: more to say of it.
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
            found: annotations, whose ``category_id`` is still the class's number and whose ids are
                given here. extra: more fields of the image.
        """
        images, annotations = self._content["images"], self._content["annotations"]
        image_id = len(images) + 1
        size = {"height": image.shape[0], "width": image.shape[1]}
        images.append({"id": image_id, "file_name": self._name(file), **size, **extra})
        for x in found:
            ids = {"image_id": image_id, "category_id": self._ids[x["category_id"]]}
            annotations.append({"id": len(annotations) + 1, **x, **ids})

    def add_failure(self, file: Path, reason: Exception) -> None:
        """Note a file that was passed over."""
        self._failed[self._name(file)] = " ".join(str(reason).split())

    def write(self, path: Path) -> tuple[int, int]:
        """Write the JSON file, whole; gives how many annotations it has, and how many images."""
        write_whole(path, json.dumps(self._content))
        return len(self._content["annotations"]), len(self._content["images"])

    def check_failures(self, total: int, done: str) -> None:
        """See that none of so many files failed, else name them, and then say what was done.

        Raises:
            UserError: when any failed.
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

"""Shapes: a small detection dataset, drawn on first use, to try everything without a download.

The datasets are ``shapes_train`` (3,000 images), ``shapes_few_train`` (the first 300 of them) and
``shapes_val`` (500). An image has 96 x 96 pixels and 1 to 6 shapes of six classes. The colour does
not depend on the class. Textured backgrounds, strokes, partial overlap, noise and blur keep a small
detector well below a perfect score. The images are drawn into ``$DETECTRON2_DATASETS/shapes``.
"""

import json
import os
import tempfile

import cv2
from detectron2.data.datasets import load_coco_json
from iopath.common.file_io import file_lock
from portalocker import LockException
from tqdm import tqdm

from dpk_det.data.coco_json import register_with_classes
from dpk_det.data.shape_drawing import CLASSES, draw_image
from dpk_det.errors import UserError
from dpk_det.files import write_whole

VERSION = 1
"""Names the folder. Raise it whenever the drawing changes, so that older images are not used."""

SPLITS = {"train": (3000, 1), "few_train": (300, 1), "val": (500, 2)}
"""Number of images and seed of each split."""

_ANNOTATION_FILE = "instances.json"


def register_all(root: str) -> None:
    """Register the sets of shapes below the datasets folder ``root``.

    It draws nothing. Names that are already registered stay unchanged.
    """
    for split, (num_images, seed) in SPLITS.items():
        folder = os.path.join(root, "shapes", f"v{VERSION}", split)
        register(f"shapes_{split}", folder, num_images, seed)


def register(name: str, folder: str, num_images: int, seed: int) -> None:
    """Register a dataset of shapes that is drawn into ``folder`` when it is first loaded."""
    json_file = os.path.join(folder, _ANNOTATION_FILE)
    image_root = os.path.join(folder, "images")

    def load() -> list[dict]:
        draw_dataset(folder, num_images, seed)
        return load_coco_json(json_file, image_root, name)

    # drawn_on_demand tells check_datasets that absent files are not a mistake
    register_with_classes(name, load, json_file, image_root, CLASSES, drawn_on_demand=True)


def draw_dataset(folder: str, num_images: int, seed: int) -> None:
    """Draw ``images/NNNNNN.png`` and ``instances.json``, in COCO's format, into ``folder``.

    It does nothing if they exist already.
    The folder appears all at once when the last image is drawn. A process that is killed leaves at
    most a folder ``*.drawing-*`` beside it, which nobody reads. If several processes want the
    folder at the same time, one draws and the others wait.

    Raises:
        UserError: if ``folder`` cannot be written, or holds anything other than these images.
    """
    folder = os.path.abspath(folder)
    if _is_drawn(folder, num_images, seed):
        return
    try:
        with file_lock(folder):
            if not _is_drawn(folder, num_images, seed):
                _draw_and_move(folder, num_images, seed)
    except (OSError, LockException) as error:
        raise UserError(
            f"Cannot draw the shapes into {folder} ({error}): "
            "set the environment variable DETECTRON2_DATASETS to a folder that can be written."
        ) from error


def _info(num_images: int, seed: int) -> dict:
    """Return the values that identify a set of images."""
    return {
        "description": "dpk_det shapes",
        "version": VERSION,
        "seed": seed,
        "num_images": num_images,
    }


def _is_drawn(folder: str, num_images: int, seed: int) -> bool:
    json_file = os.path.join(folder, _ANNOTATION_FILE)
    if not os.path.exists(json_file):
        return False
    try:
        with open(json_file) as file:
            found = json.load(file)["info"]
    except (ValueError, LookupError, TypeError):
        found = "something else"
    expected = _info(num_images, seed)
    if found != expected:
        raise UserError(
            f"{json_file} holds {found} where {expected} belongs: "
            f"delete {folder} or choose another folder."
        )
    return True


def _draw_and_move(folder: str, num_images: int, seed: int) -> None:
    parent, name = os.path.split(folder)
    # The lock only saves work. Network file systems may lack locks, so the result must be right
    # without it: each process draws into its own folder, and only the first rename succeeds.
    with tempfile.TemporaryDirectory(prefix=f"{name}.drawing-", dir=parent) as scratch:
        drawn = os.path.join(scratch, name)
        _draw_files(drawn, num_images, seed)
        try:
            os.rename(drawn, folder)
        except OSError:
            if not _is_drawn(folder, num_images, seed):
                raise


def _draw_files(folder: str, num_images: int, seed: int) -> None:
    os.makedirs(os.path.join(folder, "images"))
    images, annotations = [], []
    progress = f"Drawing shapes ({os.path.basename(folder)})"
    for index in tqdm(range(num_images), desc=progress, unit="image", disable=None):
        image, objects = draw_image(seed, index)
        file_name = f"{index:06d}.png"
        if not cv2.imwrite(os.path.join(folder, "images", file_name), image):
            raise OSError(f"cannot write {file_name}")
        height, width = image.shape[:2]
        images.append({"id": index + 1, "file_name": file_name, "height": height, "width": width})
        for annotation in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
    content = {
        "info": _info(num_images, seed),
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
    }
    write_whole(os.path.join(folder, _ANNOTATION_FILE), json.dumps(content))

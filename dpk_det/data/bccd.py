"""BCCD: photos of blood cells, a real dataset that is small enough to train on in minutes.

364 images of 640 x 480 pixels with 4,888 boxes in three classes: 205 train, 87 val, 72 test.
Get it from the repository ``Shenggan/BCCD_Dataset`` (MIT licence), convert its Pascal VOC files to
COCO's JSON format (boxes only), keep its splits, and lay it out like this::

    $DETECTRON2_DATASETS/bccd/
      annotations/instances_{train,val,test}.json
      images/BloodImage_*.jpg
"""

import os
from functools import partial

from detectron2.data.datasets import load_coco_json

from dpk_det.data.coco_json import read_classes, register_with_classes
from dpk_det.errors import UserError

CLASSES = ["RBC", "WBC", "Platelets"]
"""Red blood cells, white blood cells, platelets: category ids 1, 2, 3 in the JSON files."""

SPLITS = ("train", "val", "test")


def register_all(root: str) -> None:
    """Register ``bccd_train``, ``bccd_val`` and ``bccd_test`` below the datasets folder ``root``.

    It reads no file. Names that are already registered stay unchanged.
    """
    for split in SPLITS:
        register(
            f"bccd_{split}",
            os.path.join(root, "bccd", "annotations", f"instances_{split}.json"),
            os.path.join(root, "bccd", "images"),
        )


def register(name: str, json_file: str, image_root: str) -> None:
    """Register one split. Loading it raises UserError if its classes are not :data:`CLASSES`."""
    load = partial(_load, name, json_file, image_root)
    register_with_classes(name, load, json_file, image_root, CLASSES)


def _load(name: str, json_file: str, image_root: str) -> list[dict]:
    # Converters order the classes differently. Detectron2 would stop at another order with a bare
    # assertion.
    classes = read_classes(json_file)
    if classes != CLASSES:
        raise UserError(
            f"{json_file} has the classes {classes} where {name} needs {CLASSES} in this order: "
            "renumber its categories, or name the file under DATASETS.JSON with a name of its own."
        )
    return load_coco_json(json_file, image_root, name)

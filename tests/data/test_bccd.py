"""BCCD: its layout and classes; with made-up files always, with the real ones where they are."""

import json
import os

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.data import bccd
from dpk_det.data.root import datasets_root
from dpk_det.errors import UserError

REAL = os.path.join(datasets_root(), "bccd")


def write_made_up(folder, classes=bccd.CLASSES):
    """One image a split, with one box of the second class."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.jpg"), np.zeros((48, 64, 3), np.uint8))
    content = {
        "info": {},
        "licenses": [],
        "images": [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "bbox": [1, 2, 3, 4],
                "area": 12,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
    }
    for split in bccd.SPLITS:
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(content))


def reregister(root):
    """Register below another root; conftest.py puts the old ones back."""
    for split in bccd.SPLITS:
        DatasetCatalog.remove(f"bccd_{split}")
        MetadataCatalog.remove(f"bccd_{split}")
    bccd.register_all(str(root))


def test_made_up_files_load(tmp_path):
    write_made_up(tmp_path / "bccd")
    reregister(tmp_path)
    for split in bccd.SPLITS:
        (record,) = DatasetCatalog.get(f"bccd_{split}")
        assert os.path.isfile(record["file_name"])
        (annotation,) = record["annotations"]
        assert bccd.CLASSES[annotation["category_id"]] == "WBC"
        assert annotation["bbox"] == [1, 2, 3, 4]


def test_registering_again_changes_nothing(tmp_path):
    before = MetadataCatalog.get("bccd_val").json_file
    bccd.register_all(str(tmp_path))
    assert MetadataCatalog.get("bccd_val").json_file == before


def test_classes_in_another_order_are_a_user_error(tmp_path):
    write_made_up(tmp_path / "bccd", classes=["Platelets", "RBC", "WBC"])
    reregister(tmp_path)
    with pytest.raises(UserError, match=r"instances_val.json has the classes \['Platelets'"):
        DatasetCatalog.get("bccd_val")


def test_absent_files_are_a_user_error(tmp_path):
    reregister(tmp_path)
    with pytest.raises(UserError, match="Cannot read .*instances_train.json"):
        DatasetCatalog.get("bccd_train")


@pytest.mark.skipif(
    not os.path.isdir(REAL), reason=f"BCCD is not in {REAL}: set DETECTRON2_DATASETS"
)
@pytest.mark.parametrize(
    ("split", "images", "boxes"), [("train", 205, 2805), ("val", 87, 1138), ("test", 72, 945)]
)
def test_real_files(split, images, boxes):
    records = DatasetCatalog.get(f"bccd_{split}")
    assert len(records) == images
    assert sum(len(record["annotations"]) for record in records) == boxes
    classes = {a["category_id"] for record in records for a in record["annotations"]}
    assert classes == {0, 1, 2}
    for record in records[::20]:
        assert cv2.imread(record["file_name"]).shape == (record["height"], record["width"], 3)

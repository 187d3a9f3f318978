"""Datasets of one's own, by config alone."""

import json
import os

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader

from dpk_det.data import register_json_datasets
from dpk_det.data.coco_json import read_classes
from dpk_det.errors import UserError


def write_dataset(folder, classes=("cat", "dog")):
    """Two images of 40 x 30, one box each, with category ids that neither start at 1 nor are in
    order."""
    (folder / "images").mkdir(parents=True)
    ids = [10 * (len(classes) - i) for i in range(len(classes))]
    content = {
        "info": {},
        "licenses": [],
        "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in (1, 2)],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": ids[0],
                "bbox": [5, 6, 10, 12],
                "area": 120,
                "iscrowd": 0,
            }
            for i in (1, 2)
        ],
        "categories": [{"id": id_, "name": name} for id_, name in zip(ids, classes, strict=True)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    for i in (1, 2):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), np.full((30, 40, 3), 90 * i, np.uint8))
    return [str(folder / "annotations.json"), str(folder / "images")]


def test_a_yaml_entry_is_enough_to_train_on(tmp_path, cfg):
    json_file, image_root = write_dataset(tmp_path / "pets")
    (tmp_path / "config.yaml").write_text(
        f"DATASETS:\n  JSON:\n    pets: [{json_file}, {image_root}]\n  TRAIN: ('pets',)\n"
    )
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    cfg.SOLVER.IMS_PER_BATCH = 2
    register_json_datasets(cfg)
    batch = next(iter(build_detection_train_loader(cfg)))
    # Ordered by id: dog has 10, cat has 20.
    assert MetadataCatalog.get("pets").thing_classes == ["dog", "cat"]
    assert [item["instances"].gt_classes.tolist() for item in batch] == [[1], [1]]
    x0, y0, x1, y1 = DatasetCatalog.get("pets")[0]["annotations"][0]["bbox"]
    assert (x0, y0, x1, y1) == (5, 6, 10, 12)


def test_paths_are_expanded(tmp_path, cfg, monkeypatch):
    json_file, image_root = write_dataset(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PETS", str(tmp_path / "pets"))
    monkeypatch.chdir(tmp_path)
    cfg.DATASETS.JSON.home = ["~/pets/annotations.json", "~/pets/images"]
    cfg.DATASETS.JSON.variable = ["$PETS/annotations.json", "${PETS}/images/"]
    cfg.DATASETS.JSON.relative = ("pets/annotations.json", "./pets/images")
    cfg.DATASETS.JSON.address = ["https://example.org/a.json", "https://example.org/images"]
    register_json_datasets(cfg)
    for name in ("home", "variable", "relative"):
        metadata = MetadataCatalog.get(name)
        assert (metadata.json_file, metadata.image_root) == (json_file, image_root)
        assert len(DatasetCatalog.get(name)) == 2
    assert MetadataCatalog.get("address").json_file == "https://example.org/a.json"


def test_registering_reads_no_file(tmp_path, cfg):
    cfg.DATASETS.JSON.pets = [str(tmp_path / "absent.json"), str(tmp_path / "absent")]
    register_json_datasets(cfg)
    assert "pets" in DatasetCatalog


def test_the_same_entry_twice_is_fine_another_is_not(tmp_path, cfg):
    cfg.DATASETS.JSON.pets = write_dataset(tmp_path / "pets")
    register_json_datasets(cfg)
    DatasetCatalog.get("pets")
    register_json_datasets(cfg)
    cfg.DATASETS.JSON.pets = write_dataset(tmp_path / "others")
    with pytest.raises(UserError, match="JSON.pets points to .*others.*already registered.*pets"):
        register_json_datasets(cfg)


def test_a_builtin_name_is_not_taken_over(cfg):
    cfg.DATASETS.JSON.coco_2017_val = ["a.json", "images"]
    with pytest.raises(UserError, match="give it another name"):
        register_json_datasets(cfg)


@pytest.mark.parametrize(
    "entry", ["a.json", ["a.json"], ["a", "b", "c"], ["a.json", 3], ["", "images"]]
)
def test_an_entry_that_is_not_two_paths_is_a_user_error(cfg, entry):
    cfg.DATASETS.JSON.pets = entry
    with pytest.raises(UserError, match=r"DATASETS.JSON.pets is .*give it as"):
        register_json_datasets(cfg)


def test_a_config_without_the_node_registers_nothing():
    before = DatasetCatalog.list()
    register_json_datasets(CfgNode({"DATASETS": {"TRAIN": ()}}))
    assert DatasetCatalog.list() == before


def test_classes_are_read_in_detectron2s_order(tmp_path):
    json_file, _ = write_dataset(tmp_path / "pets", classes=("cat", "dog", "axolotl"))
    assert read_classes(json_file) == ["axolotl", "dog", "cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "no JSON in UTF-8"),
        ("[]", "not in COCO's JSON format"),
        ('{"images": []}', "not in COCO's JSON format"),
        ('{"categories": [{"id": 1}]}', "has no 'name'"),
        ('{"categories": []}', "lists no categories"),
    ],
)
def test_a_file_without_classes_is_a_user_error(tmp_path, content, message):
    path = os.path.join(tmp_path, "a.json")
    if content is not None:
        with open(path, "w") as file:
            file.write(content)
    with pytest.raises(UserError, match=message) as error:
        read_classes(path)
    assert path in str(error.value)

"""COCO, VOC and YOLO give the same photos and objects."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpk_det.errors import UserError
from dpk_det.project.sources import read_sources

SIZE = (40, 30)
BOXES = {"a": [("cat", (0, 0, 20, 15))], "b": [("ant", (4, 6, 8, 9)), ("cat", (10, 0, 30, 30))]}
CLASSES = ["ant", "cat"]
XML = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"


def photos(folder: Path, names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((*SIZE[::-1], 3), np.uint8)).save(folder / f"{name}.jpg")


def coco(root, names=BOXES, file="train.json") -> list[str]:
    photos(root / "photos", names)
    images = [
        {"id": i, "file_name": f"{name}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate(names, 1)
    ]
    objects = [(i, *x) for i, name in enumerate(names, 1) for x in BOXES[name]]
    annotations = [
        {"id": n, "image_id": i, "category_id": CLASSES.index(label) + 1, "bbox": box, "iscrowd": 0}
        | {"area": box[2] * box[3]}
        for n, (i, label, box) in enumerate(objects, 1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / file).write_text(json.dumps(content))
    return [str(root / file), str(root / "photos")]


def voc(root, lists=None) -> list[str]:
    photos(root / "JPEGImages", BOXES)
    (root / "Annotations").mkdir()
    for name, boxes in BOXES.items():
        objects = "".join(
            XML.format(label, x + 1, y + 1, x + w, y + h) + "</bndbox></object>"
            for label, (x, y, w, h) in boxes
        )
        size = "<size><width>{}</width><height>{}</height></size>".format(*SIZE)
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    if lists:
        folder = root / "ImageSets" / "Main"
        folder.mkdir(parents=True)
        for split, names in lists.items():
            (folder / f"{split}.txt").write_text("\n".join(names))
    return [str(root)]


def yolo(root, splits=None) -> list[str]:
    splits = splits or {"train": BOXES}
    for split, names in splits.items():
        photos(root / split / "images", names)
        (root / split / "labels").mkdir()
        for name in names:
            lines = [
                f"{CLASSES.index(c)} {(x + w / 2) / 40} {(y + h / 2) / 30} {w / 40} {h / 30}\n"
                for c, (x, y, w, h) in BOXES[name]
            ]
            (root / split / "labels" / f"{name}.txt").write_text("".join(lines))
    content = {"names": CLASSES} | {split: f"{split}/images" for split in splits}
    (root / "data.yaml").write_text(json.dumps(content))
    return [str(root / "data.yaml")]


def found(split):
    """Photo -> class and box of its objects; and that the photos are where it says."""
    content = split.content
    names = {x["id"]: x["name"] for x in content["categories"]}
    photos = {x["id"]: x["file_name"] for x in content["images"]}
    assert all((Path(split.images) / name).is_file() for name in photos.values())
    objects = {Path(name).stem: [] for name in photos.values()}
    for x in content["annotations"]:
        box = tuple(round(v, 6) for v in x["bbox"])
        objects[Path(photos[x["image_id"]]).stem].append((names[x["category_id"]], box))
    return objects


@pytest.mark.parametrize("form", [coco, voc, yolo])
def test_all_forms_hold_the_same(form, tmp_path):
    (tmp_path / "val").mkdir()
    val = coco(tmp_path / "val")
    train, other = read_sources(form(tmp_path), val, 0)
    assert found(train) == found(other) == BOXES
    assert other.file == val[0] and (train.file is None) == (form is not coco)


def test_voc_as_two_folders(tmp_path):
    voc(tmp_path)
    paths = [str(tmp_path / name) for name in ("Annotations", "JPEGImages")]
    train, val = read_sources(paths, paths, 0)
    assert found(train) == found(val) == BOXES


def test_photos_below_the_working_directory_have_a_relative_path(tmp_path, monkeypatch):
    yolo(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    train, _ = read_sources(["mine/data.yaml"], [], 0.5)
    assert train.images == "mine/train/images"


@pytest.mark.parametrize("form", [voc, yolo])
def test_a_source_that_has_a_val_split_needs_no_other(form, tmp_path):
    train, val = read_sources(form(tmp_path, {"train": ["a"], "val": ["b"]}), [], 0)
    assert found(train) == {"a": BOXES["a"]} and found(val) == {"b": BOXES["b"]}
    assert train.content["categories"] == val.content["categories"]


@pytest.mark.parametrize("form", [coco, voc, yolo])
def test_a_share_is_kept_for_the_evaluation_always_the_same(form, tmp_path):
    paths = form(tmp_path)
    train, val = read_sources(paths, [], 0.5)
    assert len(found(train)) == len(found(val)) == 1
    assert found(train) | found(val) == BOXES
    again, _ = read_sources(paths, [], 0.5)
    assert again == train and train.file is None


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["train.json"], [], "--train is 'train.json': give a COCO JSON file"),
        (["gone"], [], "--train is 'gone': give"),
        (["train.json", "photos"], ["photos"], "--val is 'photos': give"),
        (["train.json", "photos"], [], "train.json has no photos to evaluate on: give --val, or"),
        (["gone.json", "photos"], [], "--train names gone.json, which is no file: correct"),
    ],
)
def test_what_is_of_no_form_is_told(tmp_path, monkeypatch, train, val, message):
    coco(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        read_sources(train, val, 0)


def test_two_splits_have_the_same_classes(tmp_path):
    paths = coco(tmp_path)
    other = json.loads(Path(paths[0]).read_text())
    other["categories"][0]["name"] = "bee"
    (tmp_path / "val.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"train on are \['ant', 'cat'\], .* \['bee', 'cat'\]"):
        read_sources(paths, [str(tmp_path / "val.json"), paths[1]], 0)


def test_one_photo_cannot_be_shared(tmp_path):
    with pytest.raises(UserError, match="only one photo"):
        read_sources(coco(tmp_path, ["a"]), [], 0.5)

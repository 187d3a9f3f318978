"""Photos of a comparison: those on which students differ, with the boxes of their predictions."""

import base64
import json
import os

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.comparison.photos import compare_photos
from dpk_det.comparison.run import Run

PAIR = ("plain", "student")


@pytest.fixture
def runs(tiny, tmp_path):
    """``runs(plain=..., student=...)``: finished runs whose evaluation found this."""
    tiny.cfg("plain")

    def make(**detections):
        made = {}
        for title, found in detections.items():
            run = Run(title, str(tiny.plain), tmp_path / title)
            (run.folder / "inference").mkdir(parents=True)
            path = run.folder / "inference" / "coco_instances_results.json"
            path.write_text(json.dumps(found))
            (run.folder / "results.json").write_text("{}")
            os.utime(path, (1, 1))
            made[title] = run
        return made

    return make


def perfect(tiny, images):
    """Detections of all objects of some images."""
    content = json.loads((tiny.plain.parent / "images.json").read_text())
    return [
        {
            "image_id": x["image_id"],
            "category_id": x["category_id"],
            "bbox": x["bbox"],
            "score": 0.9,
        }
        for x in content["annotations"]
        if x["image_id"] in images
    ]


def test_photos_are_ordered_by_how_much_the_students_differ(tiny, runs):
    some = perfect(tiny, {0, 1})
    made = runs(plain=some + perfect(tiny, {5})[:1], student=some + perfect(tiny, {3, 5}))
    photos = compare_photos(made, PAIR, tiny.cfg("dpk"), seed=4)
    assert (photos.better, photos.equal, photos.worse) == (2, 6, 0)
    assert [photo.name for photo in photos.won] == ["3.png", "5.png"] and photos.lost == []
    assert photos.pair == PAIR and photos.seed == 4
    first, second = photos.won
    assert [view.f1 for view in first.views] == [None, 0.0, 1.0]
    # one of two objects: precision 1, recall 1/2
    assert [view.f1 for view in second.views] == [None, pytest.approx(2 / 3), 1.0]
    assert [[box.kind for box in view.boxes] for view in first.views] == [
        ["object"] * 2,
        ["missed"] * 2,
        ["right"] * 2,
    ]


def test_the_picture_is_that_of_the_file(tiny, runs):
    photos = compare_photos(
        runs(plain=[], student=perfect(tiny, {1})), PAIR, tiny.cfg("dpk"), 1, most=1
    )
    (photo,) = photos.won
    assert (photo.name, photo.width, photo.height) == ("1.png", 96, 64)
    kind, _, data = photo.source.partition(",")
    assert kind == "data:image/jpeg;base64"
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    image = cv2.imread(str(tiny.plain.parent / "images" / "1.png"))
    assert shown.shape == image.shape
    assert np.abs(shown.astype(float) - image).mean() < 20  # noise, and JPEG


def test_boxes_are_the_predictions_of_the_checkpoint(tiny, trained, runs):
    cfg = tiny.cfg("dpk")
    made = {**runs(plain=[]), "student": Run("student", str(tiny.dpk), trained)}
    photos = compare_photos(made, PAIR, cfg, 1, most=8, threshold=0.2)
    model = tiny.build("plain").eval()
    load_weights_strictly(model, str(trained / "model_final.pth"), "weights")
    loader = build_detection_test_loader(cfg, "tiny", mapper=DatasetMapper(cfg, is_train=False))
    expected = {}
    for (record,) in loader:
        with torch.no_grad():
            (output,) = model([record])
        found = instances_to_coco_json(output["instances"].to("cpu"), record["image_id"])
        boxes = sorted((round(x["score"], 3), *x["bbox"]) for x in found if x["score"] >= 0.2)
        expected[os.path.basename(record["file_name"])] = boxes
    assert sum(map(len, expected.values())) > 8
    shown = photos.won + photos.lost
    assert len(shown) > 3
    for photo in shown:
        boxes = sorted(
            (round(box.score, 3), *box.corner, *box.size)
            for box in photo.views[2].boxes
            if box.score is not None
        )
        assert np.allclose(boxes, expected[photo.name], atol=0.01)


def test_what_is_not_here_is_not_shown(tiny, runs):
    cfg = tiny.cfg("dpk")
    made = runs(plain=[], student=[])
    found = made["student"].folder / "inference" / "coco_instances_results.json"
    assert compare_photos(made, PAIR, cfg, 1) is not None
    os.utime(found, (2e9, 2e9))  # of a later evaluation, perhaps of other weights
    assert compare_photos(made, PAIR, cfg, 1) is None
    found.write_text("[{")
    os.utime(found, (1, 1))
    assert compare_photos(made, PAIR, cfg, 1) is None
    found.unlink()
    assert compare_photos(made, PAIR, cfg, 1) is None


def test_a_photo_that_is_gone_is_left_out(tiny, runs, tmp_path, monkeypatch):
    cfg = tiny.cfg("dpk")
    records = [dict(record) for record in DatasetCatalog.get("tiny")]
    records[2]["file_name"] = str(tmp_path / "gone.png")
    monkeypatch.setitem(DatasetCatalog.data, "tiny", lambda: records)
    photos = compare_photos(runs(plain=[], student=perfect(tiny, {2, 3})), PAIR, cfg, 1)
    assert [photo.name for photo in photos.won] == ["3.png"] and photos.better == 2


def test_a_teacher_that_was_evaluated_elsewhere_is_shown(tiny, runs):
    made = runs(plain=perfect(tiny, {0}), student=[])
    teacher = Run(
        "given", str(tiny.dpk), made["plain"].folder / "given", (), (), "--eval-teacher", "t.json"
    )
    folder = teacher.folder / "teacher" / "inference"
    folder.mkdir(parents=True)
    path = folder / "coco_instances_results.json"
    path.write_text(json.dumps(perfect(tiny, {0})))
    (teacher.folder / "t.json").write_text("{}")
    os.utime(path, (1, 1))
    photos = compare_photos({**made, "teacher": teacher}, PAIR, tiny.cfg("dpk"), 1)
    (photo,) = photos.lost
    assert [view.title for view in photo.views] == ["what is there", "plain", "student", "teacher"]
    assert photo.views[3].f1 == 1.0


def test_without_the_dataset_there_is_nothing_to_show(tiny, runs, monkeypatch):
    def gone():
        raise FileNotFoundError("images.json")

    cfg, made = tiny.cfg("dpk"), runs(plain=[], student=[])
    monkeypatch.setitem(DatasetCatalog.data, "tiny", gone)
    assert compare_photos(made, PAIR, cfg, 1) is None

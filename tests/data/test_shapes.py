"""The drawn dataset: that drawing survives interruption and company."""

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

import dpk_det.data
from dpk_det.data import shapes
from dpk_det.errors import UserError


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(function: Callable[[], None]) -> multiprocessing.Process:
    """Run a function in another process, forked: to import Detectron2 again takes seconds."""

    def run() -> None:
        cv2.setNumThreads(0)  # OpenCV's threads do not survive the fork
        function()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


# ---- a folder of images --------------------------------------------------------------------------


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    shapes.draw_dataset(str(tmp_path / "a"), 12, seed=3)
    shapes.draw_dataset(str(tmp_path / "b"), 12, seed=3)
    first, second = file_hashes(tmp_path / "a"), file_hashes(tmp_path / "b")
    assert len(first) == 13
    assert first == second


def test_files_hold_what_draw_image_returns(tmp_path):
    shapes.draw_dataset(str(tmp_path / "a"), 5, seed=3)
    coco = COCO(str(tmp_path / "a" / "instances.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == shapes.CLASSES
    assert sorted(coco.getImgIds()) == [1, 2, 3, 4, 5]
    for index in range(5):
        image, annotations = shapes.draw_image(3, index)
        record = coco.imgs[index + 1]
        stored_image = cv2.imread(str(tmp_path / "a" / "images" / record["file_name"]))
        assert np.array_equal(stored_image, image)
        assert (record["height"], record["width"]) == image.shape[:2]
        for stored, drawn in zip(coco.imgToAnns[index + 1], annotations, strict=True):
            assert {key: stored[key] for key in drawn} == drawn


def test_a_finished_folder_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    shapes.draw_dataset(str(folder), 3, seed=3)
    monkeypatch.setattr(shapes, "draw_image", None)  # drawing again would fail
    shapes.draw_dataset(str(folder), 3, seed=3)
    with pytest.raises(UserError, match="'seed': 3.*delete"):
        shapes.draw_dataset(str(folder), 3, seed=4)
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    with pytest.raises(UserError, match="delete"):
        shapes.draw_dataset(str(folder), 3, seed=3)
    (folder / "instances.json").write_text("half of it {")
    with pytest.raises(UserError, match="delete"):
        shapes.draw_dataset(str(folder), 3, seed=3)


def test_an_interrupted_drawing_is_not_taken_for_a_finished_one(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    draw_image = shapes.draw_image

    def interrupted(seed, index):
        if index == 3:
            raise KeyboardInterrupt
        return draw_image(seed, index)

    monkeypatch.setattr(shapes, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.draw_dataset(str(folder), 5, seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    monkeypatch.undo()
    shapes.draw_dataset(str(folder), 5, seed=3)
    assert len(file_hashes(folder)) == 6


def test_a_killed_process_leaves_no_folder_and_no_lock(tmp_path):
    folder = tmp_path / "a"
    draw_image = shapes.draw_image

    def draw_until_killed():
        shapes.draw_image = lambda seed, index: (
            os._exit(9) if index == 3 else draw_image(seed, index)
        )
        shapes.draw_dataset(str(folder), 5, seed=3)

    process = start(draw_until_killed)
    process.join(60)
    assert process.exitcode == 9
    assert not folder.exists()
    shapes.draw_dataset(str(folder), 5, seed=3)
    assert len(file_hashes(folder)) == 6


def test_two_processes_draw_once(tmp_path):
    folder = tmp_path / "a"
    draw_image = shapes.draw_image
    barrier = multiprocessing.get_context("fork").Barrier(2, timeout=60)

    def slowly(seed, index):
        (tmp_path / f"drawn_by_{os.getpid()}").touch()
        time.sleep(0.02)
        return draw_image(seed, index)

    def draw():
        shapes.draw_image = slowly  # so that both are at it, if they do not wait
        barrier.wait()
        shapes.draw_dataset(str(folder), 20, seed=3)
        assert (folder / "instances.json").exists()

    processes = [start(draw) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("drawn_by_*"))) == 1
    assert not list(tmp_path.glob("a.drawing-*"))
    shapes.draw_dataset(str(tmp_path / "alone"), 20, seed=3)
    assert file_hashes(folder) == file_hashes(tmp_path / "alone")


def test_the_result_is_right_where_locks_do_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    draw_image = shapes.draw_image
    inodes = []

    def overtaken(seed, index):
        """Before the last image is drawn, somebody else finishes the whole folder."""
        if index == 4 and not inodes:
            inodes.append(None)
            shapes.draw_dataset(str(folder), 5, seed=3)
            inodes.append(folder.stat().st_ino)
        return draw_image(seed, index)

    monkeypatch.setattr(shapes, "file_lock", lambda path: contextlib.nullcontext())
    monkeypatch.setattr(shapes, "draw_image", overtaken)
    shapes.draw_dataset(str(folder), 5, seed=3)
    assert folder.stat().st_ino == inodes[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(file_hashes(folder)) == 6


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="DETECTRON2_DATASETS"):
        shapes.draw_dataset(str(tmp_path / "file" / "a"), 1, seed=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        shapes.draw_dataset(str(tmp_path / "a"), 1, seed=0)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.txt"]


# ---- within Detectron2 ---------------------------------------------------------------------------


def test_importing_registers_and_draws_nothing(tmp_path, monkeypatch):
    names = {"shapes_train", "shapes_val", "bccd_train", "bccd_val", "bccd_test"}
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    root = tmp_path / "sets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    importlib.reload(dpk_det.data)
    assert names <= set(DatasetCatalog.list())
    for name in names:
        assert MetadataCatalog.get(name).json_file.startswith(str(root))
    importlib.reload(dpk_det.data)
    assert not root.exists()


def test_detectron2_loads_it_with_boxes_and_polygons(tmp_path, cfg):
    shapes.register("shapes_tiny", str(tmp_path / "a"), 10, seed=5)
    assert not (tmp_path / "a").exists()
    cfg.DATASETS.TRAIN = ("shapes_tiny",)
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(DatasetCatalog.get("shapes_tiny")) == 10
    drawn = {f"{index:06d}.png": shapes.draw_image(5, index) for index in range(10)}
    batch = next(iter(build_detection_train_loader(cfg)))
    assert len(batch) == 4
    for item in batch:
        image, annotations = drawn[os.path.basename(item["file_name"])]
        assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), image)
        instances = item["instances"]
        assert instances.gt_classes.tolist() == [a["category_id"] - 1 for a in annotations]
        around_polygons = instances.gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(around_polygons, instances.gt_boxes.tensor, atol=0.02, rtol=0)
        areas = [annotation["area"] for annotation in annotations]
        np.testing.assert_allclose(instances.gt_masks.area(), areas, atol=0.5)


def test_the_truth_scores_a_perfect_ap(tmp_path, cfg):
    shapes.register("shapes_tiny", str(tmp_path / "a"), 30, seed=5)
    # The loader first: it draws the folder, whose annotations the evaluator needs.
    loader = build_detection_test_loader(cfg, "shapes_tiny")
    evaluator = COCOEvaluator(
        "shapes_tiny", tasks=("bbox",), output_dir=str(tmp_path / "out"), use_fast_impl=False
    )
    records = DatasetCatalog.get("shapes_tiny")
    truth = {record["image_id"]: record["annotations"] for record in records}
    evaluator.reset()
    for inputs in loader:
        outputs = []
        for item in inputs:
            annotations = truth[item["image_id"]]
            instances = Instances((item["height"], item["width"]))
            xywh = torch.tensor([a["bbox"] for a in annotations])
            corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
            instances.pred_boxes = Boxes(corners)
            instances.scores = torch.ones(len(annotations))
            instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
            outputs.append({"instances": instances})
        evaluator.process(inputs, outputs)
    scores = evaluator.evaluate()["bbox"]
    assert scores["AP"] == pytest.approx(100)
    assert all(scores[f"AP-{name}"] == pytest.approx(100) for name in shapes.CLASSES)


def test_the_registered_sets_are_the_documented_ones():
    counts = {split: count for split, (count, _) in shapes.SPLITS.items()}
    assert counts == {"train": 3000, "few_train": 300, "val": 500}
    assert shapes.SPLITS["few_train"][1] == shapes.SPLITS["train"][1]  # the first of them
    for split in shapes.SPLITS:
        metadata = MetadataCatalog.get(f"shapes_{split}")
        assert metadata.thing_classes == shapes.CLASSES
        assert f"v{shapes.VERSION}" in metadata.json_file

"""The drawn dataset: what is drawn, and that drawing survives interruption and company."""

import contextlib
import hashlib
import importlib
import json
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
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import dpk_det.data
from dpk_det.data import shapes
from dpk_det.errors import UserError

SAMPLE = 300
GOLDEN_BOXES = [(3, 66, 3, 24, 23), (1, 7, 72, 11, 11), (5, 59, 81, 8, 8), (2, 8, 50, 17, 17)]
GOLDEN_MEAN = 129.68


@pytest.fixture(scope="module")
def sample() -> list[tuple[np.ndarray, list[dict]]]:
    return [shapes.draw_image(7, index) for index in range(SAMPLE)]


def polygon_mask(annotation: dict, size: int = 96) -> np.ndarray:
    """pycocotools' own rasterisation of a polygon, (size, size) bool."""
    rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], size, size))
    return coco_mask.decode(rle).astype(bool)


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


# ---- one image -----------------------------------------------------------------------------------


def test_an_image_depends_on_its_arguments_alone(sample):
    for index in (5, 2, 5):
        image, annotations = shapes.draw_image(7, index)
        assert np.array_equal(image, sample[index][0])
        assert annotations == sample[index][1]
    assert not np.array_equal(shapes.draw_image(8, 5)[0], sample[5][0])
    # The splits are drawn from different seeds: no image of one is in the other.
    assert len({image.tobytes() for image, _ in sample}) == SAMPLE
    assert shapes.SPLITS["train"][1] != shapes.SPLITS["val"][1]


def test_what_is_drawn_changes_only_with_the_version():
    """If this fails because the drawing was changed: raise shapes.VERSION, then mend the numbers
    here."""
    assert shapes.VERSION == 1
    image, annotations = shapes.draw_image(1, 0)
    found = [(a["category_id"], *(round(v) for v in a["bbox"])) for a in annotations]
    assert found == GOLDEN_BOXES
    assert image.mean() == pytest.approx(GOLDEN_MEAN, abs=0.05)


def test_image_and_annotations_are_well_formed(sample):
    for image, annotations in sample:
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert 1 <= len(annotations) <= 6
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            assert x >= 0 and y >= 0 and x + width <= 96.001 and y + height <= 96.001
            assert 7.9 <= max(width, height) <= 48.1
            assert annotation["iscrowd"] == 0
            assert json.loads(json.dumps(annotation)) == annotation
    counts = np.bincount([len(annotations) for _, annotations in sample], minlength=7)
    assert (counts[1:] > 0).all()


def test_classes_and_sizes_are_balanced(sample):
    objects = [a for _, annotations in sample for a in annotations]
    shares = np.bincount([a["category_id"] for a in objects], minlength=7)[1:] / len(objects)
    assert len(shares) == len(shapes.CLASSES) == 6
    np.testing.assert_allclose(shares, 1 / 6, atol=0.04)
    extents = np.log2([max(a["bbox"][2:]) for a in objects])
    # Log-uniform over 8..48: the median is their geometric mean, 19.6.
    assert np.median(extents) == pytest.approx(np.log2(19.6), abs=0.25)


def test_colour_does_not_tell_the_class(sample):
    colours: dict[int, list] = {}
    for image, annotations in sample:
        top = annotations[-1]  # nothing covers the last one
        # A ring's middle is background: look where the shape itself is.
        outline = np.reshape(top["segmentation"][0], (-1, 2))
        inside = outline.mean(axis=0) + 0.75 * (outline[0] - outline.mean(axis=0))
        x, y = inside.astype(int)
        colours.setdefault(top["category_id"], []).append(image[y, x])
    means = np.array([np.mean(colours[category], axis=0) for category in sorted(colours)])
    # About 50 samples a class with a deviation of about 75: a standard error of 11.
    assert np.abs(means - means.mean(axis=0)).max() < 45


def test_boxes_and_areas_agree_with_pycocotools(sample):
    for _, annotations in sample[:100]:
        for annotation in annotations:
            rle = coco_mask.frPyObjects(annotation["segmentation"], 96, 96)[0]
            x, y, width, height = annotation["bbox"]
            found = coco_mask.toBbox(rle)
            expected = np.array([x, y, x + width, y + height])
            # Whole pixels, and the sharp tips are lost.
            np.testing.assert_allclose([*found[:2], *(found[:2] + found[2:])], expected, atol=1.5)
            # Rasterising moves the border by up to half a pixel.
            perimeter = 2 * (width + height)
            assert coco_mask.area(rle) == pytest.approx(annotation["area"], abs=0.5 * perimeter)

            points = np.reshape(annotation["segmentation"][0], (-1, 2))
            np.testing.assert_allclose(points.min(axis=0), (x, y), atol=0.006)
            np.testing.assert_allclose(points.max(axis=0), (x + width, y + height), atol=0.011)


def test_pixels_lie_where_the_box_says():
    """Paint each class on a plain canvas and find it again by its pixels."""
    rng = np.random.default_rng(0)
    for name in shapes.CLASSES:
        for _ in range(20):
            outline = shapes._place(rng, name, 96)
            mask = shapes._mask(name, outline, 96)
            rows, columns = np.nonzero(mask > 0.02)
            x0, y0 = outline.min(axis=0)
            x1, y1 = outline.max(axis=0)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(found, [x0, y0, x1, y1], atol=1.3)
            area = cv2.contourArea(outline.astype(np.float32))
            if name == "ring":
                assert mask[tuple(outline.mean(axis=0).astype(int)[::-1])] == 0
                area *= 1 - 0.55**2
            perimeter = cv2.arcLength(outline.astype(np.float32), closed=True)
            assert mask.sum() == pytest.approx(area, abs=0.2 * perimeter)


def test_no_shape_is_hidden(sample):
    shown, overlaps = 0, 0
    for _, annotations in sample:
        if any(shapes.CLASSES[a["category_id"] - 1] == "ring" for a in annotations):
            continue  # its polygon covers what is seen through its hole
        masks = [polygon_mask(annotation) for annotation in annotations]
        for i, mask in enumerate(masks):
            later = [mask & other for other in masks[i + 1 :]]
            covered = np.any([np.zeros_like(mask), *later], axis=0)
            visible = 1 - covered.sum() / mask.sum()
            # Whole pixels here, shares of them when drawing.
            assert visible > shapes.MIN_VISIBLE - 0.1
            shown += 1
            overlaps += visible < 0.95
    assert shown > 100
    assert overlaps > 0.05 * shown


@pytest.mark.parametrize("size", [64, 128])
def test_shapes_scale_with_the_image(size):
    for index in range(20):
        image, annotations = shapes.draw_image(0, index, size=size)
        assert image.shape == (size, size, 3)
        for annotation in annotations:
            assert 7.9 <= max(annotation["bbox"][2:]) * 96 / size <= 48.1


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
    draw_files, draw_image = shapes._draw_files, shapes.draw_image
    barrier = multiprocessing.get_context("fork").Barrier(2, timeout=60)

    def slowly(seed, index):
        time.sleep(0.02)
        return draw_image(seed, index)

    def noted(*args):
        (tmp_path / f"drawn_by_{os.getpid()}").touch()
        draw_files(*args)

    def draw():
        shapes.draw_image, shapes._draw_files = slowly, noted
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
    assert counts == {"train": 3000, "val": 500}
    for split in shapes.SPLITS:
        metadata = MetadataCatalog.get(f"shapes_{split}")
        assert metadata.thing_classes == shapes.CLASSES
        assert f"v{shapes.VERSION}" in metadata.json_file

"""Evaluators by dataset: what they are, and that a training's evaluation gives their figures."""

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    coco_evaluation,
    inference_on_dataset,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances

from dpk_det.data import check_datasets
from dpk_det.engine import DistillTrainer, check, evaluators
from dpk_det.engine.metric_names import metric_names
from dpk_det.errors import UserError

PANOPTIC = ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", True]
PANOPTIC += ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p3']", "MODEL.SEM_SEG_HEAD.NORM", ""]
PANOPTIC += ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
PANOPTIC += ["MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
KEYPOINTS = ["MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3]
KEYPOINTS += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)"]


@pytest.fixture
def rich(tiny, tmp_path, catalogs):
    """``rich(evaluator type)`` registers the tiny images with masks, keypoints, pixel classes."""
    plain = tiny.cfg("plain")
    annotations, images = plain.DATASETS.JSON.tiny
    content = json.loads(Path(annotations).read_text())
    pixels = {x["id"]: np.zeros((x["height"], x["width"]), np.uint8) for x in content["images"]}
    for x in content["annotations"]:
        left, top, width, height = x["bbox"]
        right, bottom = left + width, top + height
        x["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
        x["keypoints"] = [left + 1, top + 1, 2, right - 1, top + 1, 2, left + 1, bottom - 1, 2]
        x["num_keypoints"] = 3
        pixels[x["image_id"]][top:bottom, left:right] = x["category_id"]
    (tmp_path / "rich.json").write_text(json.dumps(content))
    for i, classes in pixels.items():
        cv2.imwrite(str(tmp_path / f"{i}.png"), classes)

    def load(name):
        records = load_coco_json(str(tmp_path / "rich.json"), images, name)
        for record in records:
            record["sem_seg_file_name"] = str(tmp_path / Path(record["file_name"]).name)
        return records

    def register(kind, name="rich"):
        DatasetCatalog.register(name, lambda: load(name))
        MetadataCatalog.get(name).set(
            json_file=str(tmp_path / "rich.json"),
            evaluator_type=kind,
            thing_dataset_id_to_contiguous_id={1: 0, 2: 1},
            stuff_classes=["things", "grass", "sky"],
            stuff_dataset_id_to_contiguous_id={0: 0, 1: 1, 2: 2},
            ignore_label=255,
            keypoint_names=["a", "b", "c"],
            keypoint_flip_map=[("a", "b")],
        )
        return pixels

    return register


def kinds(evaluator):
    return [type(x) for x in getattr(evaluator, "_evaluators", [evaluator])]


def test_the_evaluators_are_those_of_the_datasets_type(tiny, rich, tmp_path, monkeypatch, caplog):
    cfg = tiny.cfg("plain", "OUTPUT_DIR", tmp_path)
    assert kinds(DistillTrainer.build_evaluator(cfg, "tiny")) == [COCOEvaluator]
    (tmp_path / "Annotations").mkdir()
    MetadataCatalog.get("some_voc").set(
        evaluator_type="pascal_voc", dirname=str(tmp_path), split="x", year=2012, thing_classes=[]
    )
    assert kinds(evaluators.build_evaluator(cfg, "some_voc")) == [PascalVOCDetectionEvaluator]
    rich("sem_seg", "stuff")
    assert kinds(evaluators.build_evaluator(cfg, "stuff")) == [SemSegEvaluator]
    rich("coco_panoptic_seg")
    monkeypatch.setattr(evaluators, "find_spec", lambda name: name == "panopticapi")
    all_three = [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator]
    assert kinds(evaluators.build_evaluator(cfg, "rich")) == all_three
    monkeypatch.setattr(evaluators, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "dpk_det"):
        assert kinds(evaluators.build_evaluator(cfg, "rich")) == all_three[:2]
    assert "The panoptic quality of rich is not measured" in caplog.text


def test_a_dataset_without_an_evaluator_is_an_error(tiny, catalogs):
    MetadataCatalog.get("odd").set(evaluator_type="stereo")
    with pytest.raises(UserError, match="odd has evaluator_type 'stereo'"):
        DistillTrainer.build_evaluator(tiny.cfg("plain"), "odd")


def test_a_panoptic_model_is_measured_on_boxes_masks_and_pixels(tiny, rich, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "find_spec", lambda name: None)
    pixels = rich("coco_panoptic_seg")
    cfg = tiny.cfg("plain", *PANOPTIC, "DATASETS.TEST", "('rich',)", "OUTPUT_DIR", tmp_path)
    model = tiny.build("plain", *PANOPTIC)
    seen = {}
    model.register_forward_hook(
        lambda _, args, outputs: seen.update(
            {x["image_id"]: y["sem_seg"].argmax(0) for x, y in zip(args[0], outputs, strict=True)}
        )
    )
    results = DistillTrainer.test(cfg, model)
    assert {"bbox", "segm", "sem_seg"} <= set(results)
    assert set(flatten_results_dict(results)) == set(metric_names(cfg))
    # mean over the classes of intersection over union
    both = [(seen[i].numpy(), pixels[i]) for i in pixels]
    ious = []
    for c in range(3):
        inside = sum(((a == c) & (b == c)).sum() for a, b in both)
        either = sum(((a == c) | (b == c)).sum() for a, b in both)
        ious.append(inside / either)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * np.mean(ious))


def test_keypoints_are_measured_with_the_configs_sigmas(tiny, rich, tmp_path, command):
    rich("coco")
    torch.save({"model": tiny.build("plain", *KEYPOINTS).state_dict()}, tmp_path / "it.pth")
    opts = [*KEYPOINTS, "MODEL.WEIGHTS", tmp_path / "it.pth", "OUTPUT_DIR", tmp_path]
    opts += ["DATASETS.TRAIN", "('gone',)", "DATASETS.TEST", "('rich',)"]

    def measure(sigma):
        line = ["--config-file", tiny.plain, "--eval-only", *opts]
        results = command(*line, "TEST.KEYPOINT_OKS_SIGMAS", [sigma] * 3)
        assert set(flatten_results_dict(results)) == set(metric_names(tiny.cfg("plain", *opts)))
        return results["keypoints"]["AP"]

    assert measure(1e-4) == 0
    assert measure(1e4) > 0  # any point is near enough


@pytest.mark.parametrize(
    ("kind", "opts", "figures"),
    [
        ("coco_panoptic_seg", PANOPTIC, "sem_seg: mIoU"),
        ("coco", KEYPOINTS, "keypoints: AP"),
    ],
)
def test_check_evaluates_all_kinds_on_two_images(tiny, rich, tmp_path, capsys, kind, opts, figures):
    rich(kind)
    more = ["DATASETS.TRAIN", "('rich',)", "DATASETS.TEST", "('rich',)"]
    more += ["TEST.KEYPOINT_OKS_SIGMAS", [0.1] * 3, "OUTPUT_DIR", tmp_path]
    cfg = tiny.cfg("plain", *opts, *more)
    check_datasets(cfg)
    report = check(cfg)
    assert figures in report
    assert report.endswith("The job is ready to run.")


def test_the_fast_evaluation_has_the_figures_of_pycocotools(tiny, rich, tmp_path, monkeypatch):
    pytest.importorskip("faster_coco_eval")
    rich("coco")
    opts = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8]
    cfg = tiny.cfg("plain", *opts, "DATASETS.TEST", "('rich',)", "OUTPUT_DIR", tmp_path)
    model = tiny.build("plain", *opts)
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", coco_evaluation.COCOeval)
    fast = DistillTrainer.test(cfg, model)
    assert coco_evaluation.COCOeval_opt is not coco_evaluation.COCOeval
    slow = COCOEvaluator("rich", ("bbox", "segm"), output_dir=str(tmp_path), use_fast_impl=False)
    loader = DistillTrainer.build_test_loader(cfg, "rich")
    expected = inference_on_dataset(model, loader, slow)
    assert {"bbox", "segm"} == set(fast) and fast["segm"]["AP"] > 0
    for kind, figures in expected.items():
        assert fast[kind] == pytest.approx(figures, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("image_id", "category_id"),
    [("image {}".format, int), (lambda i: 2**62 + i, int), (int, lambda i: 2**62 + i)],
    ids=["texts", "large", "large categories"],
)
def test_figures_are_the_same_whatever_the_ids(
    tiny, tmp_path, catalogs, monkeypatch, image_id, category_id
):
    pytest.importorskip("faster_coco_eval")
    cfg = tiny.cfg("plain", "OUTPUT_DIR", tmp_path)
    annotations, images = cfg.DATASETS.JSON.tiny
    content = json.loads(Path(annotations).read_text())
    for x in content["images"]:
        x["id"] = image_id(x["id"])
    for x in content["categories"]:
        x["id"] = category_id(x["id"])
    for x in content["annotations"]:
        x["image_id"], x["category_id"] = image_id(x["image_id"]), category_id(x["category_id"])
    (tmp_path / "other.json").write_text(json.dumps(content))
    register_coco_instances("other", {}, str(tmp_path / "other.json"), images)
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", coco_evaluation.COCOeval)
    expected = evaluate_most(cfg, "tiny")["bbox"]
    assert 0 < expected["AP"] < 100
    assert evaluate_most(cfg, "other")["bbox"] == pytest.approx(expected, nan_ok=True)


def evaluate_most(cfg, name):
    """The figures of a model that finds all objects but the last of the first image."""
    evaluator = evaluators.build_evaluator(cfg, name)
    evaluator.reset()
    for i, record in enumerate(DatasetCatalog.get(name)):
        objects = record["annotations"][: -1 if i == 0 else None]
        boxes = torch.tensor([x["bbox"] for x in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        found = Instances((record["height"], record["width"]))
        found.pred_boxes, found.scores = Boxes(boxes), torch.ones(len(objects))
        found.pred_classes = torch.tensor([x["category_id"] for x in objects])
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()

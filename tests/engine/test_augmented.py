"""Test-time augmentation: figures beside the plain ones, or one sentence."""

import json

import pytest

from dpk_det.engine.augmented import check_augmented
from dpk_det.errors import UserError

AUG = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 64)", "TEST.AUG.MAX_SIZE", "96"]


def test_a_training_and_an_evaluation_measure_it_too(tiny, tmp_path, command):
    command("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 1, *AUG)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert set(results) == {"bbox", "bbox_TTA"}
    assert (tmp_path / "inference_TTA" / "coco_instances_results.json").exists()
    opts = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "again")
    again = command("--config-file", tiny.dpk, "--eval-only", *opts, *AUG)
    assert again["bbox_TTA"]["AP"] == pytest.approx(results["bbox_TTA"]["AP"])
    assert again["bbox"]["AP"] == pytest.approx(results["bbox"]["AP"])
    assert results["bbox_TTA"] != results["bbox"]


def test_a_training_that_ends_early_measures_it_too(tiny, tmp_path, command):
    early = ["TEST.EVAL_PERIOD", 1, "TEST.BEST_METRIC", "bbox/AP", "TEST.PATIENCE", 1]
    early += ["SOLVER.BASE_LR", 0.0, "SOLVER.MAX_ITER", 9]  # so it never gains
    command("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, *early, *AUG)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["ended_early"] and results["iterations"] == 2
    assert set(results["results"]) == {"bbox", "bbox_TTA"}


@pytest.mark.parametrize(
    ("opts", "what"),
    [
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "a RetinaNet"),
        (["MODEL.META_ARCHITECTURE", "DistillFCOS"], "a FCOS"),
        (["MODEL.META_ARCHITECTURE", "DistillPanopticFPN"], "a PanopticFPN"),
        (["MODEL.META_ARCHITECTURE", "ImageClassifier"], "a ImageClassifier"),
        (["MODEL.KEYPOINT_ON", "True"], "keypoints"),
        (["MODEL.LOAD_PROPOSALS", "True"], "proposals from files"),
    ],
)
def test_other_models_cannot_be_augmented(tiny, opts, what):
    check_augmented(tiny.cfg("plain", *opts))
    with pytest.raises(UserError, match=f"TEST.AUG.ENABLED is for R-CNNs .*cannot take {what}"):
        check_augmented(tiny.cfg("plain", *opts, *AUG))


def test_it_is_found_before_training(tiny, command, capsys, tmp_path):
    opts = ("MODEL.LOAD_PROPOSALS", "True", "OUTPUT_DIR", tmp_path)
    with pytest.raises(SystemExit) as stop:
        command("--config-file", tiny.plain, *AUG, *opts)
    assert stop.value.code == 2
    assert "TEST.AUG.ENABLED is for R-CNNs" in capsys.readouterr().err

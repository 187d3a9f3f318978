"""Classifiers through the training command, as detectors go."""

import json

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from dpk_det.comparison.command import compare
from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite
from dpk_det.data import build_image_test_loader
from dpk_det.deploy.export import export_student
from dpk_det.engine.check import check
from dpk_det.engine.train import parse_args, setup
from dpk_det.errors import UserError
from dpk_det.modeling import ImageClassifier

LONGER = ["SOLVER.MAX_ITER", 60, "SOLVER.IMS_PER_BATCH", 15, "INPUT.IMAGES.PAD", 1]


def read(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_classifier_learns_to_tell_shapes(tiny_images, tmp_path, command):
    command("--config-file", tiny_images.plain, "OUTPUT_DIR", tmp_path, *LONGER)
    results = read(tmp_path)
    figures = results["results"]["cls"]
    assert figures.keys() == {"top1", "top5", "top1-disc", "top1-none", "top1-square"}
    assert figures["top1"] > 70 and figures["top5"] == 100  # 33 by chance
    assert results["parameters"] == 278_324 - 65 * 97 and results["distiller_parameters"] == 0


def test_a_distilled_one_leaves_its_figures_and_evaluates_to_them(
    tiny_images, distilled_images, command
):
    results = read(distilled_images)
    assert results["distiller_parameters"] > 0 and results["iterations"] == 3
    lines = map(json.loads, (distilled_images / "metrics.json").read_text().splitlines())
    logged = set().union(*lines)
    assert logged >= {"loss_cls", "loss_dpk", "loss_kd_image", "dpk/ratio_stage3", "cls/top1"}
    tiny_images.weights.rename(hidden := tiny_images.weights.with_suffix(".hidden"))
    try:  # an evaluation needs no teacher
        weights = str(distilled_images / "model_final.pth")
        found = command("--config-file", tiny_images.dpk, "--eval-only", "MODEL.WEIGHTS", weights)
    finally:
        hidden.rename(tiny_images.weights)
    assert found["cls"] == pytest.approx(results["results"]["cls"])


def test_figures_are_those_of_the_checkpoint(tiny_images, distilled_images):
    cfg = tiny_images.cfg("plain")
    model = build_model(cfg).eval()
    state = torch.load(distilled_images / "model_final.pth")["model"]
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("distiller.")})
    hits = [
        (model(batch).argmax(1) == batch["labels"]).tolist()
        for batch in build_image_test_loader(cfg, "discs_test")
    ]
    hits = [hit for batch in hits for hit in batch]
    assert read(distilled_images)["results"]["cls"]["top1"] == pytest.approx(100 * sum(hits) / 30)


def test_the_weights_are_exported_without_the_distillers(tiny_images, distilled_images, tmp_path):
    weights, output = str(distilled_images / "model_final.pth"), tmp_path / "student.pth"
    export_student(str(tiny_images.dpk), weights, str(output))
    exported, trained = (torch.load(path)["model"] for path in (output, weights))
    tiny_images.build("plain").load_state_dict(exported)
    assert any(name.startswith("distiller.") for name in trained)
    assert all(torch.equal(value, trained[name]) for name, value in exported.items())


def test_training_resumes(tiny_images, tmp_path, command):
    opts = ["--config-file", tiny_images.dpk, "OUTPUT_DIR", tmp_path]
    command(*opts, "SOLVER.CHECKPOINT_PERIOD", 2)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    command("--resume", *opts)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 3


def test_methods_with_one_seed_see_the_same_images(tiny_images, monkeypatch, tmp_path, command):
    seen, forward = [], ImageClassifier.forward

    def look(model, batch):
        if model.training:
            seen.append(batch["images"].clone())
        return forward(model, batch)

    monkeypatch.setattr(ImageClassifier, "forward", look)
    for config in (tiny_images.plain, tiny_images.dpk):
        command("--config-file", config, "OUTPUT_DIR", tmp_path / config.stem)
    assert len(seen) == 6 and torch.equal(torch.stack(seen[:3]), torch.stack(seen[3:]))


def test_a_suite_of_classifiers_is_compared(tiny_images, tmp_path, command):
    content = {
        "seeds": [1, 2],
        "metric": "cls/top1",
        "secondary": "cls/top5",
        "common": {"SOLVER.MAX_ITER": 2},
        "start": "teacher",
        "teachers": {"teacher": {"config": str(tiny_images.plain), "seed": 5}},
        "baseline": "plain",
        "methods": {
            "plain": {"config": str(tiny_images.plain)},
            "kd": {
                "config": str(tiny_images.dpk),
                "teacher": "teacher",
                "opts": {"DISTILL.METHODS": ["kd"]},
            },
        },
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    todo = plan(read_suite(path), tmp_path / "runs")
    for run in todo.runs:  # in this process: starting one takes ten seconds
        command(*run.arguments)
    compare(todo, tmp_path / "out", None, "command", print)
    report = (tmp_path / "out" / "report.md").read_text()
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "| top-1, %" in report and "| top-5, %" in report and "](top-1.png)" in report
    assert (tmp_path / "out" / "top-1.png").read_bytes().startswith(b"\x89PNG")
    figures = [read(tmp_path / "runs" / f"kd-seed{s}")["results"]["cls"]["top1"] for s in (1, 2)]
    assert list(summary["methods"]["kd"]["values"].values()) == pytest.approx(figures)


def test_check_reports_levels_and_sizes(tiny_images):
    report = check(tiny_images.cfg("dpk"))
    assert "stage3" in report and "loss_cls" in report and "The job is ready to run." in report
    assert any(line.split() == ["discs_train", "30"] for line in report.splitlines())


def test_a_detectors_dataset_is_refused_before_training(tiny, tiny_images):
    tiny.cfg("plain")  # registers it
    with pytest.raises(UserError, match="has no use for dataset tiny"):
        setup(parse_args(["--config-file", str(tiny_images.plain), "DATASETS.TRAIN", "('tiny',)"]))

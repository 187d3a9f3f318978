"""--check: a report, one step, a little evaluation, and no checkpoint."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.data import check_datasets, register_json_datasets
from dpk_det.engine import DistillTrainer, check, evaluators


def count(module):
    return f"{sum(p.numel() for p in module.parameters()):,}"


def rows(text):
    """The cells of every line."""
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def report(tiny, command, capsys, tmp_path):
    """``report(config, *opts)`` is what --check prints."""

    def run(config, *opts):
        assert command("--config-file", config, "--check", "OUTPUT_DIR", tmp_path, *opts) is None
        return capsys.readouterr().out

    return run


def test_a_distilling_job_is_reported_and_leaves_no_checkpoint(tiny, report, tmp_path):
    text = report(tiny.dpk)
    model = tiny.build("dpk")
    assert ["p2", "16", "p2", "16", "4"] in rows(text)
    assert ["p3", "16", "p3", "16", "8"] in rows(text)
    assert ["p4", "16", "p4", "16", "16"] in rows(text)
    assert ["student", count(tiny.build("plain"))] in rows(text)
    assert ["teacher", count(tiny.build("teacher"))] in rows(text)
    assert ["distiller", count(model.distiller)] in rows(text)
    assert "student: none given (MODEL.WEIGHTS is empty), starts at random" in text
    assert "teacher: all found" in text
    assert ["tiny", "8"] in rows(text)
    losses = {cells[0]: float(cells[1]) for cells in rows(text) if "loss_" in " ".join(cells[:1])}
    assert len(losses) == 5 and losses["loss_dpk"] > 0
    assert text.rstrip().endswith("The job is ready to run.")
    left = {path.name for path in tmp_path.rglob("*")}
    assert left <= {"config.yaml", "log.txt"}


def test_a_plain_job_has_no_teacher_and_no_pairs(tiny, report):
    text = report(tiny.plain)
    assert ["student", count(tiny.build("plain"))] in rows(text)
    assert "teacher" not in text.split("parameters")[-1]
    assert "level pairs" not in text and "loss_dpk" not in text


def test_it_counts_which_of_the_students_weights_were_found(tiny, report, tmp_path):
    state = tiny.build("plain").state_dict()
    state.pop("roi_heads.box_predictor.cls_score.bias")
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(7, 16)
    path = tmp_path / "start.pth"
    torch.save({"model": state}, path)
    text = report(tiny.dpk, "MODEL.WEIGHTS", path)
    total = len(tiny.build("plain").state_dict())
    assert f"student: {total - 2} of {total} found in {path}" in text
    assert "of another shape there: roi_heads.box_predictor.cls_score.weight" in text


def test_inheriting_is_tried_too(tiny, report):
    opts = ("DISTILL.INHERIT", "True", "DISTILL.TEACHER.CONFIG_FILE", tiny.teacher)
    text = report(tiny.plain, *opts, "DISTILL.TEACHER.WEIGHTS", tiny.weights)
    assert "The job is ready to run." in text


def test_it_runs_in_one_process_whatever_is_asked_for(tiny, report):
    # one machine of many is enough to try a job on
    assert "ready to run" in report(tiny.plain, "SOLVER.IMS_PER_BATCH", "16")


def test_a_loss_that_is_not_finite_is_an_error_that_names_it(tiny, command, tmp_path, capsys):
    # a teacher that divides by next to nothing
    opts = ("DISTILL.TEACHER.OPTS", "['MODEL.PIXEL_STD', [1e-38, 1.0, 1.0]]")
    with pytest.raises(SystemExit) as stop:
        command("--config-file", tiny.dpk, "--check", "OUTPUT_DIR", tmp_path, *opts)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The first step on images of DATASETS.TRAIN failed (Floating")
    assert "loss_dpk is nan" in error


def test_it_tries_as_many_images_as_a_process_will_get_two_at_most(tiny, monkeypatch):
    tried = []
    build = DistillTrainer.build_train_loader

    def watched(cfg):
        for batch in build(cfg):
            tried.append(len(batch))
            yield batch

    monkeypatch.setattr(DistillTrainer, "build_train_loader", watched)
    for ims_per_batch in (1, 8):
        check(tiny.cfg("plain", "SOLVER.IMS_PER_BATCH", ims_per_batch))
    assert tried == [1, 2]


# ------------------------------------------------------------------ what fails late


@pytest.fixture
def fails(command, capsys, tmp_path):
    """``fails(config, *opts)``: --check must end with status 2; returns the last line it says."""

    def run(config, *opts, flag="--check"):
        with pytest.raises(SystemExit) as stop:
            command("--config-file", config, flag, "OUTPUT_DIR", tmp_path, *opts)
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def copy(tiny, tmp_path, catalogs):
    """``copy(name, edit)`` is an entry of DATASETS.JSON: the tiny images, their JSON edited."""

    def copy(name, edit=lambda content: None):
        plain = tiny.cfg("plain")
        annotations, images = plain.DATASETS.JSON.tiny
        content = json.loads(Path(annotations).read_text())
        edit(content)
        shutil.copytree(images, tmp_path / name)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return f"DATASETS.JSON.{name}", [f"{tmp_path / name}.json", str(tmp_path / name)]

    return copy


def cut_off(folder, number=3):
    """Leave an image its header alone."""
    path = folder / f"{number}.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def swap(content):
    content["categories"] = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]


def config(tmp_path, base, *entries, **more):
    """A config file on other datasets, which cannot be named on the command line."""
    lines = [f'_BASE_: "{base}"', "DATASETS:", "  JSON:"]
    lines += [f"    {key.rpartition('.')[2]}: {value}" for key, value in entries]
    lines += [f"  {key}: {value!r}" for key, value in more.items()]
    path = tmp_path / "other.yaml"
    path.write_text("\n".join(lines))
    return path


def test_it_evaluates_two_images_of_each_dataset(tiny, report, tmp_path):
    text = report(tiny.plain)
    assert "tiny  bbox: AP, AP50, AP75, APs, APm, APl" in text
    assert "Average Precision" not in text
    assert not (tmp_path / "inference").exists()


def test_a_model_that_finds_nothing_is_evaluated_too(tiny, report):
    assert "ready to run" in report(tiny.plain, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")


def test_a_dataset_without_an_evaluator_is_found_before_training(tiny, fails, catalogs):
    DatasetCatalog.register("odd", list)
    MetadataCatalog.get("odd").set(evaluator_type="stereo")
    assert "odd has evaluator_type 'stereo'" in fails(tiny.plain, "DATASETS.TEST", "('odd',)")


def test_lvis_needs_its_package(tiny, fails, catalogs, monkeypatch):
    DatasetCatalog.register("odd", list)
    MetadataCatalog.get("odd").set(evaluator_type="lvis")
    monkeypatch.setattr(evaluators, "find_spec", lambda name: None)
    assert "needs the package lvis" in fails(tiny.plain, "DATASETS.TEST", "('odd',)")


def test_an_evaluation_that_gives_no_figure(tiny, fails, monkeypatch):
    class Nothing:
        def evaluate(self):
            return {}

        def reset(self): ...

        def process(self, inputs, outputs): ...

    monkeypatch.setattr(DistillTrainer, "build_evaluator", lambda cfg, name: Nothing())
    assert "The evaluation of tiny gives no figure" in fails(tiny.plain)


def test_an_evaluation_that_breaks_down(tiny, fails, monkeypatch):
    def build(cfg, name):
        raise KeyError("area")

    monkeypatch.setattr(DistillTrainer, "build_evaluator", build)
    line = fails(tiny.plain)
    assert "evaluation of 2 images of tiny failed (KeyError: 'area')" in line


def test_data_of_which_nothing_can_be_used(tiny, fails, copy, tmp_path):
    def crowds(content):
        for x in content["annotations"]:
            x["iscrowd"] = 1

    path = config(tmp_path, tiny.plain, copy("crowds", crowds), TRAIN=("crowds",))
    assert "no object within a listed image" in fails(path)


def test_a_teacher_that_is_not_trained_yet(tiny, command, capsys, tmp_path):
    opts = ("DISTILL.TEACHER.WEIGHTS", "", "OUTPUT_DIR", tmp_path / "student")
    with pytest.raises(SystemExit) as stop:
        command("--config-file", tiny.dpk, "--check", *opts)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert "level pairs" in out and "loss_dpk" in out and "ready to run" not in out
    assert "teacher: none yet, random ones in this check" in out and "all found" not in out
    assert err.splitlines()[-1].startswith(
        f"error: not ready: The teacher {tiny.teacher} has no weights: train it (that leaves "
    )


def test_what_else_is_wrong_is_said_before_the_teacher_is_trained(tiny, fails, tmp_path):
    weights = ("DISTILL.TEACHER.WEIGHTS", tmp_path / "gone.pth")
    line = fails(tiny.dpk, *weights, "DISTILL.LEVELS", "['p7']")
    assert "DISTILL.LEVELS names 'p7'" in line
    line = fails(tiny.dpk, *weights)
    assert f"not ready: There are no weights at {tmp_path / 'gone.pth'}" in line
    line = fails(tiny.dpk, *weights, "DISTILL.TEACHER.CONFIG_FILE", "gone.yaml")
    assert "teacher's config gone.yaml is neither" in line


# ------------------------------------------------------------------ what is learned from


@pytest.mark.parametrize(
    "opts",
    [
        ("DISTILL.METHODS", "['kd']"),
        ("DISTILL.METHODS", "['dpk', 'dkd']"),
        ("DISTILL.INHERIT", "True"),
    ],
)
def test_a_teacher_that_numbers_its_classes_otherwise(tiny, fails, report, copy, tmp_path, opts):
    path = config(tmp_path, tiny.dpk, copy("swapped", swap), TRAIN=("swapped",), TEST=("swapped",))
    line = fails(path, *opts)
    assert "student's classes are not its teacher's in the same order, of dataset tiny" in line
    assert "'disc' is number 0 of one and 1 of the other" in line


def test_features_do_not_mind_how_classes_are_numbered(tiny, report, copy, tmp_path):
    path = config(tmp_path, tiny.dpk, copy("swapped", swap), TRAIN=("swapped",), TEST=("swapped",))
    assert "ready to run" in report(path)


def test_a_teacher_of_other_classes(tiny, fails, copy, tmp_path):
    def rename(content):
        content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]

    path = config(tmp_path, tiny.dpk, copy("pets", rename), TRAIN=("pets",), TEST=("pets",))
    line = fails(path, "DISTILL.METHODS", "['kd']")
    assert "none has the same name, the first are 'cat' and 'square'" in line


def test_a_teacher_whose_data_are_elsewhere_is_taken_by_number(tiny, report, tmp_path, copy):
    other = tmp_path / "teacher.yaml"
    other.write_text(
        f'_BASE_: "{tiny.teacher}"\nDATASETS:\n  JSON: {{away: ["/gone.json", "/gone"]}}\n'
        '  TRAIN: ("away",)\n  TEST: ("away",)\n'
    )
    path = config(tmp_path, tiny.dpk, copy("swapped", swap), TRAIN=("swapped",), TEST=("swapped",))
    opts = ("DISTILL.METHODS", "['kd']", "DISTILL.TEACHER.CONFIG_FILE", other)
    assert "ready to run" in report(path, *opts)


def test_weights_of_another_backbone(tiny, fails, tmp_path):
    opts, weights = ("MODEL.SMALL_RESNET.WIDTHS", "[8, 16, 24]"), tmp_path / "other.pth"
    torch.save({"model": tiny.build("plain").state_dict()}, weights)
    line = fails(tiny.plain, "MODEL.WEIGHTS", weights, *opts)
    assert f"The weights at {weights} are of another backbone" in line
    assert "backbone.bottom_up" in line


def test_a_model_that_cannot_be_built(tiny, fails):
    line = fails(tiny.plain, "MODEL.FPN.NORM", "GN")  # with 32 groups
    assert "like this cannot be built (num_channels (16) must be divisible" in line


def test_inheriting_nothing(tiny, fails):
    opts = ["MODEL.FPN.OUT_CHANNELS", 12, "MODEL.ROI_BOX_HEAD.FC_DIM", 12]
    opts += ["MODEL.RPN.CONV_DIMS", "[12]", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5, 2.0]]"]
    opts += ["MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4']"]
    line = fails(tiny.dpk, "DISTILL.INHERIT", "True", *opts)
    assert "DISTILL.INHERIT takes nothing" in line


# ------------------------------------------------------------------ images


def test_images_are_decoded_only_where_that_is_asked_for(tiny, fails, report, copy, tmp_path):
    path = config(tmp_path, tiny.plain, copy("copied"), TRAIN=("copied",), TEST=("copied",))
    broken = cut_off(tmp_path / "copied", 7)
    assert f"{broken} cannot be read as an image" in fails(path, flag="--check-images")
    cfg = tiny.cfg("plain")
    cfg.merge_from_file(str(path))
    register_json_datasets(cfg)
    check_datasets(cfg)


def test_an_image_that_training_cannot_read_is_named_and_checkpoints_stay(
    tiny, command, capsys, copy, tmp_path
):
    path = config(tmp_path, tiny.plain, copy("copied"), TRAIN=("copied",))
    broken = cut_off(tmp_path / "copied", 5)  # that comes after the first batch
    opts = ("SOLVER.MAX_ITER", 9, "SOLVER.CHECKPOINT_PERIOD", 1, "DATALOADER.NUM_WORKERS", 1)
    with pytest.raises(SystemExit) as stop:
        command("--config-file", path, "OUTPUT_DIR", tmp_path / "run", *opts)
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {broken} cannot be read as an image (")
    run = tmp_path / "run"
    saved = [x.stem for x in sorted(run.glob("model_*.pth"))]
    assert saved and "model_final" not in saved
    for name in saved:
        assert torch.load(run / f"{name}.pth")["iteration"] == int(name.removeprefix("model_"))


def test_an_image_that_evaluation_cannot_read_is_named_and_the_model_stays(
    tiny, command, capsys, copy, tmp_path
):
    path = config(tmp_path, tiny.plain, copy("copied"), TEST=("copied",))
    broken = cut_off(tmp_path / "copied")
    with pytest.raises(SystemExit) as stop:
        command("--config-file", path, "OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 1)
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {broken} cannot be read as an image (")
    assert torch.load(tmp_path / "run" / "model_final.pth")["iteration"] == 0
    assert not (tmp_path / "run" / "results.json").exists()


def test_an_image_turned_by_exif_is_named_before_training(tiny, fails, copy, tmp_path):
    from PIL import Image

    path = config(tmp_path, tiny.plain, copy("copied"), TRAIN=("copied",))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.ascontiguousarray(cv2.imread(str(tmp_path / "copied" / "1.png")))
    Image.fromarray(pixels).save(tmp_path / "copied" / "1.png", exif=exif)
    assert "EXIF orientation (6) turns it" in fails(path)


def test_a_training_without_data(tiny, fails):
    assert "DATASETS.TRAIN is empty: name what to train on" in fails(
        tiny.plain, "DATASETS.TRAIN", "()"
    )


def test_it_tells_about_how_long_a_training_takes(tiny, report):
    found = report(tiny.dpk, "SOLVER.MAX_ITER", 1_000_000, "SOLVER.IMS_PER_BATCH", 8)
    line = next(x for x in found.splitlines() if "seconds for a step" in x)
    hours, seconds = re.search(r"about (\d+) hours .* from ([\d.]+) seconds", line).groups()
    # of two images, where the training takes eight
    assert "step of 2 images (4 times as many in the training)" in line
    assert float(hours) == pytest.approx(4 * float(seconds) * 1_000_000 / 3600, rel=0.2)
    assert "minutes for 10 steps" in report(tiny.plain, "SOLVER.MAX_ITER", 10)


@pytest.mark.parametrize(("reference", "times", "steps"), [(0, 1, 40), (2, 2, 20)])
def test_the_time_is_that_of_as_many_processes_as_asked_for(tiny, reference, times, steps):
    opts = ("SOLVER.IMS_PER_BATCH", 8, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    found = check(tiny.cfg("plain", "SOLVER.MAX_ITER", 40, *opts), num_processes=4)
    assert f"step of 2 images ({times} times as many in the training)" in found
    assert f"for {steps} steps" in found


def test_cka_of_images_is_tried_on_as_many_as_it_needs(tiny, report, fails):
    opts = ("DISTILL.DPK.CKA_OF", "images", "SOLVER.IMS_PER_BATCH")
    assert "step of 4 images (2 times" in report(tiny.dpk, *opts, 8)
    assert "CKA of images needs 4 images a process but got 2" in fails(tiny.dpk, *opts, 2)


def test_it_says_what_a_network_of_timms_starts_from(tiny, report, tmp_path):
    opts = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet10t")
    small = ("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4']")
    found = report(tiny.plain, *opts, *small, "MODEL.TIMM.PRETRAINED", "False")
    assert "(MODEL.WEIGHTS is empty), starts at random" in found
    import timm

    path = tmp_path / "own.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    found = report(tiny.plain, *opts, *small, "MODEL.TIMM.WEIGHTS", path)
    assert f"(MODEL.WEIGHTS is empty), its network from {path}, the rest at random" in found

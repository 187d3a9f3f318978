"""The training command in this process: evaluation, and mistakes that end in one line."""

import json
import subprocess
import sys

import pytest
import torch

from dpk_det.data import check_datasets
from dpk_det.engine.train import check_batch, check_teacher_is_kept, parse_args, setup
from dpk_det.errors import UserError


def detections(folder):
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


# ------------------------------------------------------------------ evaluation


def test_both_configs_evaluate_a_checkpoint_alike(tiny, trained, tmp_path, command):
    weights = trained / "model_final.pth"
    results, found = [], []
    for config in (tiny.dpk, tiny.plain):
        folder = tmp_path / config.stem
        opts = ("MODEL.WEIGHTS", weights, "OUTPUT_DIR", folder)
        results.append(command("--config-file", config, "--eval-only", *opts)["bbox"])
        found.append(detections(folder))
    assert len(found[0]) > 10
    assert found[0] == found[1] == detections(trained)
    assert results[0]["AP"] == results[1]["AP"] > 0
    assert str(results[0]) == str(results[1])  # as text, for some may be nan
    at_the_end = json.loads((trained / "results.json").read_text())["results"]["bbox"]
    assert at_the_end["AP"] == results[0]["AP"]


def test_evaluation_needs_no_teacher(tiny, trained, tmp_path, command):
    results = command(
        *("--config-file", tiny.dpk, "--eval-only", "OUTPUT_DIR", tmp_path),
        *("MODEL.WEIGHTS", trained / "model_final.pth"),
        *("DISTILL.TEACHER.CONFIG_FILE", "gone.yaml", "DISTILL.TEACHER.WEIGHTS", "gone.pth"),
    )
    assert results["bbox"]["AP"] > 0


# ------------------------------------------------------------------ setup


def test_setup_registers_and_checks_the_datasets_and_freezes_the_config(tiny):
    cfg = setup(parse_args(["--config-file", str(tiny.dpk)]))
    assert cfg.is_frozen()
    assert cfg.MODEL.META_ARCHITECTURE == "DistillRCNN"
    check_datasets(cfg)


def test_setup_for_evaluation_is_of_the_plain_model(tiny):
    cfg = setup(parse_args(["--config-file", str(tiny.dpk), "--eval-only"]))
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"


# ------------------------------------------------------------------ mistakes


@pytest.fixture
def fails(command, capsys):
    """Runs a command that must end with status 2 and one line on stderr; returns that line."""

    def run(*argv):
        with pytest.raises(SystemExit) as stop:
            command(*argv)
        assert stop.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def test_an_unknown_key_on_the_command_line(tiny, fails):
    line = fails("--config-file", tiny.dpk, "DISTILL.DPK.RATIO_FIX", "0.1")
    assert "no config key DISTILL.DPK.RATIO_FIX (on the command line)" in line
    assert "did you mean DISTILL.DPK.RATIO_FIXED?" in line


def test_an_unknown_key_in_the_file(tiny, tmp_path, fails):
    path = tmp_path / "c.yaml"
    path.write_text(f"_BASE_: {tiny.dpk}\nDISTILL:\n  DPK:\n    HEAD: 4\n")
    line = fails("--config-file", path)
    assert f"DISTILL.DPK.HEAD (in {path}): did you mean DISTILL.DPK.HEADS?" in line


def test_an_unknown_distiller(tiny, tmp_path, fails):
    opts = ("DISTILL.METHODS", "['dkp']", "OUTPUT_DIR", tmp_path)
    assert "no distiller named 'dkp': did you mean 'dpk'?" in fails(
        "--config-file", tiny.dpk, *opts
    )


def test_a_teacher_config_that_is_not_found(tiny, tmp_path, fails):
    opts = ("DISTILL.TEACHER.CONFIG_FILE", "gone.yaml", "OUTPUT_DIR", tmp_path)
    line = fails("--config-file", tiny.dpk, *opts)
    assert "teacher's config gone.yaml is neither a file" in line


def test_a_teacher_without_weights(tiny, tmp_path, fails):
    opts = ("DISTILL.TEACHER.WEIGHTS", "", "OUTPUT_DIR", tmp_path)
    assert f"The teacher {tiny.teacher} has no weights" in fails("--config-file", tiny.dpk, *opts)


def test_teacher_weights_that_are_not_there(tiny, tmp_path, fails):
    opts = ("DISTILL.TEACHER.WEIGHTS", tmp_path / "gone.pth", "OUTPUT_DIR", tmp_path)
    line = fails("--config-file", tiny.dpk, *opts)
    assert f"no weights at {tmp_path / 'gone.pth'}: give DISTILL.TEACHER.WEIGHTS" in line


def test_teacher_weights_of_another_architecture(tiny, trained, tmp_path, fails):
    opts = ("DISTILL.TEACHER.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path)
    line = fails("--config-file", tiny.dpk, *opts)
    assert "are not of this architecture" in line and "backbone." in line


def test_no_common_level(tiny, tmp_path, fails):
    # a teacher of p2 alone for a student of p3 and p4
    one_map = ["MODEL.FPN.IN_FEATURES", ["res2"], "MODEL.SMALL_RESNET.WIDTHS", [8]]
    one_map += ["MODEL.SMALL_RESNET.BLOCKS", [1], "MODEL.RPN.IN_FEATURES", ["p2"]]
    one_map += ["MODEL.ANCHOR_GENERATOR.SIZES", [[16]], "MODEL.ROI_HEADS.IN_FEATURES", ["p2"]]
    weights = tmp_path / "one_map.pth"
    torch.save({"model": tiny.build("teacher", *one_map).state_dict()}, weights)
    line = fails(
        *("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path),
        *("DISTILL.TEACHER.OPTS", one_map, "DISTILL.TEACHER.WEIGHTS", weights),
        *("MODEL.FPN.IN_FEATURES", "['res3', 'res4']", "MODEL.RPN.IN_FEATURES", "['p3', 'p4']"),
        *("MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4']"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]"),
    )
    assert "share no feature level: the student has p3 (stride 8), p4 (stride 16)" in line
    assert "the teacher p2 (stride 4)" in line


def test_an_unknown_level(tiny, tmp_path, fails):
    opts = ("DISTILL.LEVELS", "['p7']", "OUTPUT_DIR", tmp_path)
    assert "DISTILL.LEVELS names 'p7'" in fails("--config-file", tiny.dpk, *opts)


def test_a_dataset_whose_folder_is_absent(tiny, tmp_path, fails, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for catalog in (DatasetCatalog, MetadataCatalog):  # what is registered goes with the test
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
    path = tmp_path / "c.yaml"
    annotations = tiny.plain.parent / "images.json"
    path.write_text(
        f"_BASE_: {tiny.dpk}\n"
        f"DATASETS:\n  JSON:\n    astray: [{annotations}, {tmp_path}/gone]\n  TRAIN: ('astray',)\n"
    )
    line = fails("--config-file", path, "OUTPUT_DIR", tmp_path)
    assert f"The image folder of astray, {tmp_path}/gone, does not exist" in line


def test_an_unknown_dataset(tiny, tmp_path, fails):
    line = fails("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, "DATASETS.TEST", "('tinny',)")
    assert "'tinny', which is not registered: did you mean 'tiny'?" in line


def test_an_absent_config_file(fails):
    assert "There is no config file gone/c.yaml" in fails("--config-file", "gone/c.yaml")


def test_absent_weights_for_evaluation(tiny, tmp_path, fails):
    opts = ("MODEL.WEIGHTS", tmp_path / "gone.pth", "OUTPUT_DIR", tmp_path)
    line = fails("--config-file", tiny.dpk, "--eval-only", *opts)
    assert "gone.pth: give MODEL.WEIGHTS" in line


@pytest.mark.parametrize("flag", ["--check", "--eval-only"])
def test_mistakes_end_alike_whatever_the_command_was_to_do(tiny, fails, flag):
    assert "SOLVER.BASE_LR" in fails("--config-file", tiny.dpk, flag, "SOLVER.BASE_RL", "1.0")


def test_an_unknown_architecture(tiny, tmp_path, fails):
    error = fails(
        "--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, "MODEL.META_ARCHITECTURE", "DistilRCNN"
    )
    assert "did you mean 'DistillRCNN'?" in error


def test_no_method_at_all(tiny, tmp_path, fails):
    error = fails("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, "DISTILL.METHODS", "[]")
    assert "No method is named" in error


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("MODEL: {", "broken.yaml"),
        ('_BASE_: "gone.yaml"', "gone.yaml"),
        ("DISTILL: 3", "broken.yaml"),
    ],
)
def test_a_config_file_that_cannot_be_read(tmp_path, fails, text, named):
    (tmp_path / "broken.yaml").write_text(text)
    assert named in fails("--config-file", tmp_path / "broken.yaml")


def test_teacher_weights_that_are_no_checkpoint(tiny, tmp_path, fails):
    (tmp_path / "text.pth").write_text("not weights")
    error = fails(
        *("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path),
        *("DISTILL.TEACHER.WEIGHTS", tmp_path / "text.pth"),
    )
    assert "text.pth is no checkpoint" in error
    assert "DISTILL.TEACHER.WEIGHTS" in error


def test_evaluating_without_weights(tiny, tmp_path, fails):
    assert "MODEL.WEIGHTS is empty" in fails(
        "--config-file", tiny.plain, "--eval-only", "OUTPUT_DIR", tmp_path
    )


def test_evaluating_weights_of_another_architecture(tiny, tmp_path, fails):
    error = fails(
        *("--config-file", tiny.plain, "--eval-only", "OUTPUT_DIR", tmp_path),
        *("MODEL.WEIGHTS", tiny.weights),
    )
    assert "not of this architecture" in error


def test_a_loss_that_becomes_nan_while_training(tiny, tmp_path, fails):
    # a teacher that divides by next to nothing
    error = fails(
        *("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path),
        *("DISTILL.TEACHER.OPTS", "['MODEL.PIXEL_STD', [1e-44, 1.0, 1.0]]"),
    )
    assert "Training stopped" in error
    assert "loss_dpk" in error


def test_a_distilled_student_can_teach_without_its_own_teacher(tiny, trained, tmp_path, command):
    (tmp_path / "distilled.yaml").write_text(
        f'_BASE_: "{tiny.dpk}"\nDISTILL:\n  TEACHER:\n    CONFIG_FILE: "gone.yaml"\n'
    )
    opts = ("DISTILL.TEACHER.CONFIG_FILE", tmp_path / "distilled.yaml", "OUTPUT_DIR", tmp_path)
    weights = ("DISTILL.TEACHER.WEIGHTS", trained / "model_final.pth")
    assert command("--config-file", tiny.dpk, "--check", *opts, *weights) is None


def test_evaluation_needs_no_training_data(tiny, trained, tmp_path, command):
    (tmp_path / "evaluate.yaml").write_text(
        f'_BASE_: "{tiny.dpk}"\nDATASETS:\n  JSON:\n    gone_json: ["gone.json", "gone"]\n'
        '  TRAIN: ("absent",)\n'
    )
    opts = ("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path)
    assert command("--config-file", tmp_path / "evaluate.yaml", "--eval-only", *opts)["bbox"]


@pytest.mark.parametrize("flag", ["--check", "--eval-only"])
def test_only_a_training_writes_its_config(tiny, trained, tmp_path, command, flag):
    opts = ("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path)
    command("--config-file", tiny.dpk, flag, *opts)
    assert not (tmp_path / "config.yaml").exists()
    assert (trained / "config.yaml").exists()


# ------------------------------------------------------------------ before a training


@pytest.mark.parametrize("weights", ["", "given"])
@pytest.mark.parametrize("flags", [(), ("--check",)])
@pytest.mark.parametrize("config", ["dpk", "plain"])
def test_a_teacher_whose_weights_a_training_would_overwrite(
    tiny, tmp_path, fails, weights, flags, config
):
    content = tiny.weights.read_bytes()
    (tmp_path / "model_final.pth").write_bytes(content)
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(f'_BASE_: "{tiny.teacher}"\nOUTPUT_DIR: "{tmp_path}"\n')
    path = tmp_path / "x" / ".." / "model_final.pth" if weights else ""
    (tmp_path / "x").mkdir()
    opts = ["DISTILL.TEACHER.CONFIG_FILE", teacher, "DISTILL.TEACHER.WEIGHTS", path]
    if config == "plain":
        opts += ["DISTILL.INHERIT", "True"]
    line = fails("--config-file", getattr(tiny, config), *flags, "OUTPUT_DIR", tmp_path, *opts)
    assert "would be overwritten by the student's" in line
    assert (tmp_path / "model_final.pth").read_bytes() == content


@pytest.mark.parametrize("name", ["model_0000009", "model_best", "model_ema"])
def test_a_teacher_under_any_name_that_a_training_saves(tiny, tmp_path, name):
    (tmp_path / f"{name}.pth").write_bytes(tiny.weights.read_bytes())
    opts = ("OUTPUT_DIR", tmp_path, "DISTILL.TEACHER.WEIGHTS", tmp_path / f"{name}.pth")
    with pytest.raises(UserError, match="would be overwritten by the student's"):
        check_teacher_is_kept(tiny.cfg("dpk", *opts))


def test_a_teacher_in_the_students_folder_that_stays_is_fine(tiny, tmp_path):
    (tmp_path / "teacher.pth").write_bytes(tiny.weights.read_bytes())
    opts = ("OUTPUT_DIR", tmp_path, "DISTILL.TEACHER.WEIGHTS", tmp_path / "teacher.pth")
    check_teacher_is_kept(tiny.cfg("dpk", *opts))


def test_a_batch_that_processes_cannot_share(tiny, tiny_images):
    for cfg in (tiny.cfg("plain"), tiny_images.cfg("plain", "SOLVER.IMS_PER_BATCH", 2)):
        check_batch(cfg, 2)
        with pytest.raises(UserError, match=r"IMS_PER_BATCH is 2, .* processes, 4, .* it to 4\."):
            check_batch(cfg, 4)
    cfg = tiny.cfg("plain", "SOLVER.IMS_PER_BATCH", 6, "SOLVER.REFERENCE_WORLD_SIZE", 2)
    check_batch(cfg, 4)  # Detectron2 makes 12 of the 6
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 4
    with pytest.raises(UserError, match=r"SOLVER.REFERENCE_WORLD_SIZE, 4, does not divide.* to 4"):
        check_batch(cfg, 4)


def test_a_check_shares_the_batch_among_the_gpus_that_the_training_is_to_have(tiny, fails):
    line = fails("--config-file", tiny.plain, "--check", "--num-gpus", "4")
    assert "SOLVER.IMS_PER_BATCH is 2" in line


def test_nothing_stands_before_the_output_of_a_command():
    command = [sys.executable, "-m", "dpk_det.engine.train", "--config-file", "gone.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: There is no config file gone.yaml")


def test_a_warm_up_that_is_longer_than_the_training_is_told(tiny, tmp_path, command, caplog):
    argv = ("--config-file", tiny.plain, "--check", "SOLVER.MAX_ITER", 12, "OUTPUT_DIR", tmp_path)
    command(*argv, "SOLVER.WARMUP_ITERS", 12)
    assert "SOLVER.WARMUP_ITERS is 12 and the training has 12 steps" in caplog.text
    caplog.clear()
    command(*argv, "SOLVER.WARMUP_ITERS", 1)
    assert "SOLVER.WARMUP_ITERS" not in caplog.text

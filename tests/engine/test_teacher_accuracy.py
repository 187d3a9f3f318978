"""A teacher's own figures."""

import json
import os

import pytest

from dpk_det.engine.teacher_accuracy import describe_teacher, evaluation_config
from dpk_det.errors import UserError


@pytest.fixture
def weights(tiny, tmp_path):
    """A copy of the teacher's weights."""
    path = tmp_path / "weights.pth"
    path.write_bytes(tiny.weights.read_bytes())
    return path


def test_the_teacher_is_evaluated_its_own_way(tiny, tmp_path, command):
    # other pixel statistics and channel order than the student's
    found = command("--config-file", tiny.dpk, "--eval-teacher", "OUTPUT_DIR", tmp_path)
    own = ["--config-file", tiny.teacher, "--eval-only", "MODEL.WEIGHTS", tiny.weights]
    expected = command(*own, "OUTPUT_DIR", tmp_path / "own")
    assert found["bbox"] == pytest.approx(expected["bbox"], nan_ok=True) and found["bbox"]["AP"] > 0
    left = json.loads((tmp_path / "teacher.json").read_text())
    assert left["results"]["bbox"]["AP"] == found["bbox"]["AP"]
    assert left["teacher"]["weights"] == str(tiny.weights)
    assert left["teacher"]["datasets"] == ["tiny"]
    # of the student itself nothing is written
    assert {path.name for path in tmp_path.iterdir()} == {"teacher.json", "teacher", "own"}


def test_a_classifying_teacher_is_evaluated(tiny_images, tmp_path, command):
    found = command("--config-file", tiny_images.dpk, "--eval-teacher", "OUTPUT_DIR", tmp_path)
    own = ["--config-file", tiny_images.teacher, "--eval-only", "OUTPUT_DIR", tmp_path]
    assert found == command(*own, "MODEL.WEIGHTS", tiny_images.weights)


def test_a_lazy_config_says_what_order_its_channels_have(tiny, tmp_path):
    lazy = tmp_path / "teacher.py"
    lazy.write_text("model = dict(num_classes=2)\n")
    cfg = tiny.cfg("dpk", "DISTILL.TEACHER.CONFIG_FILE", lazy)
    test_cfg = evaluation_config(cfg)
    assert test_cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert test_cfg.INPUT.MIN_SIZE_TEST == cfg.INPUT.MIN_SIZE_TEST
    lazy.write_text("model = dict(roi_heads=dict(num_classes=80))\n")
    with pytest.raises(
        UserError, match=r"cannot be evaluated on .*: it has 80 classes but dataset tiny has 2"
    ):
        evaluation_config(cfg)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("DISTILL.TEACHER.OPTS", "['MODEL.ROI_HEADS.NUM_CLASSES', 5]"),
            r"The teacher .*teacher\.yaml cannot be evaluated on the student's DATASETS.TEST: "
            r"MODEL\.ROI_HEADS\.NUM_CLASSES is 5 but dataset tiny has 2 classes",
        ),
        (("DATASETS.TEST", "()"), r"DATASETS\.TEST is empty: name the datasets"),
        (("DISTILL.TEACHER.CONFIG_FILE", ""), r"DISTILL\.TEACHER\.CONFIG_FILE is empty"),
    ],
)
def test_a_teacher_that_cannot_be_evaluated_is_told(tiny, opts, message):
    with pytest.raises(UserError, match=message):
        evaluation_config(tiny.cfg("dpk", *opts))


def test_what_decides_on_the_figures_is_told_apart(tiny, weights):
    def describe(*opts, **kwargs):
        cfg = tiny.cfg("dpk", "DISTILL.TEACHER.WEIGHTS", weights, *opts)
        return describe_teacher(cfg, **kwargs)

    first = describe()
    assert describe("DISTILL.DPK.WEIGHT", 3.0, "SOLVER.MAX_ITER", 9, "OUTPUT_DIR", "x") == first
    for opts in (
        ("DISTILL.TEACHER.OPTS", "['INPUT.MIN_SIZE_TEST', 32]"),
        ("DISTILL.TEACHER.WEIGHTS", tiny.weights),
        ("DATASETS.TEST", "('tiny', 'other')"),
    ):
        assert describe(*opts) != first
    os.utime(weights, (1, 1))
    assert describe() != first
    weights.unlink()
    assert describe(any_machine=True).items() <= first.items()


def test_the_check_tells_the_teachers_figures_by_option(tiny, tmp_path, command, capsys):
    argv = ["--config-file", tiny.dpk, "--check", "OUTPUT_DIR", tmp_path]
    assert command(*argv) is None and not [*tmp_path.iterdir()]
    assert "Evaluation results" not in capsys.readouterr().out
    found = command("--eval-teacher", *argv)
    said = capsys.readouterr().out
    assert said.index("The job is ready to run.") < said.index("Evaluation results for bbox")
    assert found["bbox"]["AP"] > 0
    left = json.loads((tmp_path / "teacher.json").read_text())
    assert left["results"]["bbox"]["AP"] == found["bbox"]["AP"]


@pytest.mark.parametrize("other", ["--check", "--eval-teacher"])
def test_a_student_is_evaluated_by_itself(tiny, command, capsys, other):
    with pytest.raises(SystemExit) as error:
        command("--config-file", tiny.dpk, "--eval-only", other)
    assert error.value.code == 2
    assert "--eval-only goes with neither --check nor --eval-teacher" in capsys.readouterr().err

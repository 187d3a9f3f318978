"""Whether what lies in a run's folder is what the run would make now."""

import os
import re
from contextlib import nullcontext

import pytest

from dpk_det.comparison.made_with import check_age, check_config
from dpk_det.comparison.run import Run
from dpk_det.errors import UserError


def test_a_finished_training_is_recognised_by_its_configuration(tiny, trained):
    said = []
    check_config(Run("dpk", str(tiny.dpk), trained), say=said.append)
    assert said == []


def test_where_curves_are_sent_is_no_difference(tiny, trained):
    check_config(Run("dpk", str(tiny.dpk), trained, opts=("TRACKER.NAME", "wandb")))


def copy_of(folder, tmp_path, *changes):
    """A folder made with another config."""
    text = (folder / "config.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path


def test_a_folder_of_another_configuration_is_refused(tiny, trained):
    run = Run("dpk", str(tiny.dpk), trained, opts=("SOLVER.BASE_LR", "0.5"))
    with pytest.raises(
        UserError,
        match=rf"{trained} was made with another configuration .* \(SOLVER\.BASE_LR differs\)",
    ):
        check_config(run)


def test_a_key_newer_than_the_folder_may_have_its_default_only(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("\n  LEVELS: []\n", "\n"))
    check_config(Run("dpk", str(tiny.dpk), folder))
    with pytest.raises(UserError, match=r"DISTILL\.LEVELS differs"):
        check_config(Run("dpk", str(tiny.dpk), folder, opts=("DISTILL.LEVELS", "['p2']")))


def test_a_key_that_is_gone_is_a_difference(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("\n  LEVELS: []\n", "\n  LEVELS: []\n  OLD: 1\n"))
    with pytest.raises(UserError, match=r"DISTILL\.OLD differs"):
        check_config(Run("dpk", str(tiny.dpk), folder))


@pytest.mark.parametrize(("ratio", "differs"), [("0.0", False), ("0.25", True)])
def test_a_key_of_an_earlier_version_may_say_what_is_so_now(
    tiny, trained, tmp_path, ratio, differs
):
    folder = copy_of(
        trained, tmp_path, ("    RATIO: gap\n", f"    RATIO_MIN: {ratio}\n    RATIO: gap\n")
    )
    with pytest.raises(UserError, match="RATIO_MIN differs") if differs else nullcontext():
        check_config(Run("dpk", str(tiny.dpk), folder))


def test_the_form_of_a_method_is_no_difference_where_it_says_the_same(tiny, trained, tmp_path):
    said = "    SHORTCUT: true\n    TARGET: standard\n    CKA_EVERY: 4\n"
    lines = [("    FORM: shortcut\n", said)]
    lines += [(f"    {key}: null\n", "") for key in ("SHORTCUT", "TARGET", "CKA_EVERY")]
    folder = copy_of(trained, tmp_path, *lines)
    check_config(Run("dpk", str(tiny.dpk), folder))


def test_the_keys_of_a_method_count_only_where_it_is_used(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("    TOKEN_STRIDE: 16\n", "    TOKEN_STRIDE: 8\n"))
    with pytest.raises(UserError, match=r"DISTILL\.DPK\.TOKEN_STRIDE differs"):
        check_config(Run("dpk", str(tiny.dpk), folder))
    copy_of(folder, tmp_path, ("  METHODS:\n  - dpk\n", "  METHODS:\n  - pkd\n"))
    check_config(Run("dpk", str(tiny.dpk), folder, ("DISTILL.METHODS", "['pkd']")))


def test_the_spelling_of_the_teachers_path_is_no_difference(tiny, trained, monkeypatch):
    monkeypatch.chdir(tiny.weights.parent)
    check_config(Run("dpk", str(tiny.dpk), trained, ("DISTILL.TEACHER.WEIGHTS", "teacher.pth")))
    with pytest.raises(UserError, match=r"DISTILL\.TEACHER\.WEIGHTS differs"):
        check_config(Run("dpk", str(tiny.dpk), trained, ("DISTILL.TEACHER.WEIGHTS", "plain.pth")))


def test_a_teacher_that_moved_with_its_student_is_no_difference(tiny, trained, tmp_path):
    lines = (trained / "config.yaml").read_text().splitlines()
    output = next(line for line in lines if line.startswith("OUTPUT_DIR: "))
    weights = next(line for line in lines if line.strip() == f"WEIGHTS: {tiny.weights}")
    folder = copy_of(
        trained,
        tmp_path,
        (output, "OUTPUT_DIR: before/runs/student"),
        (weights, "    WEIGHTS: before/runs/teacher/model_final.pth"),
    )
    there = str(folder.parent / "teacher" / "model_final.pth")
    check_config(Run("dpk", str(tiny.dpk), folder, ("DISTILL.TEACHER.WEIGHTS", there)))
    other = str(folder.parent / "other" / "model_final.pth")
    with pytest.raises(UserError, match=r"DISTILL\.TEACHER\.WEIGHTS differs"):
        check_config(Run("dpk", str(tiny.dpk), folder, ("DISTILL.TEACHER.WEIGHTS", other)))


def test_what_is_imported_is_no_difference_but_its_keys_are(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_runs_keys.py").write_text("def add_config(cfg):\n    cfg.OWN_KEY = 1\n")
    imports = ("IMPORTS", "['a_runs_keys']")
    # as a suite gives them, to a folder that was made before it did
    told = (*imports, "DISTILL.TEACHER.OPTS", str([*imports]))
    check_config(Run("dpk", str(tiny.dpk), trained, told))
    with pytest.raises(UserError, match=r"\(OWN_KEY differs\)"):
        check_config(Run("dpk", str(tiny.dpk), trained, (*told, "OWN_KEY", "2")))
    with pytest.raises(UserError, match=r"\(DISTILL\.TEACHER\.OPTS differs\)"):
        opts = ("DISTILL.TEACHER.OPTS", str([*imports, "MODEL.FPN.OUT_CHANNELS", "8"]))
        check_config(Run("dpk", str(tiny.dpk), trained, (*imports, *opts)))
    folder = copy_of(trained, tmp_path, ("IMPORTS: []\n", "IMPORTS:\n- gone\n"))
    check_config(Run("dpk", str(tiny.dpk), folder))


def test_a_gpu_that_is_not_here_is_no_difference_to_a_report(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("  DEVICE: cpu", "  DEVICE: cuda"))
    run = Run("dpk", str(tiny.dpk), folder)
    check_config(run, any_machine=True)
    with pytest.raises(UserError, match=r"MODEL\.DEVICE differs"):
        check_config(run)


def test_what_was_begun_before_a_run_that_it_needs_does_not_go_on(tmp_path):
    teacher, student = (Run(name, "none.yaml", tmp_path / name) for name in ("teacher", "student"))
    for run, name, seconds in ((student, "config.yaml", 1000), (teacher, "results.json", 2000)):
        run.folder.mkdir()
        (run.folder / name).write_text('{"results": {}}')
        os.utime(run.folder / name, (seconds, seconds))
    with pytest.raises(UserError, match="student was made before the teacher it needs"):
        check_age(student, [teacher])
    os.utime(student.folder / "config.yaml", (3000, 3000))
    check_age(student, [teacher])


# ------------------------------------------------------------------ a damaged config.yaml


def damaged(content):
    return {
        "empty": b"",
        "half": content[: len(content) // 2],
        "half a line": content[: content.index(b"\nMODEL:") + 4],
        "binary": b"\x89PNG\x00\xff",
        "zeros": b"\x00" * 100,
        "a list": b"- 1",
        "a text": b"SOLVER",
        "no end": content[: content.index(b"\nVIS_PERIOD")],
        "no mapping": re.sub(rb"\nDISTILL:\n(  .*\n)+", b"\nDISTILL: x\n", content),
    }


@pytest.mark.parametrize("kind", damaged(b"\nDISTILL:\n  A: 1\nMODEL:\nVIS_PERIOD"))
def test_a_damaged_config_is_told_where_something_was_made_with_it(tiny, trained, tmp_path, kind):
    folder, said = tmp_path / "run", []
    folder.mkdir()
    content = (trained / "config.yaml").read_bytes()
    (folder / "config.yaml").write_bytes(damaged(content)[kind])
    run = Run("dpk", str(tiny.dpk), folder)
    check_config(run, say=said.append)  # nothing was made with it
    assert len(said) == 1 and "config.yaml is damaged; nothing was saved yet" in said[0]
    (folder / "model_0000001.pth").touch()
    with pytest.raises(UserError, match=r"run/config\.yaml is damaged, so that nobody can tell"):
        check_config(run)
    (folder / "config.yaml").unlink()  # as the sentence advises
    check_config(run)

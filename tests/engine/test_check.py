"""--check: a report, one step, and no checkpoint."""

import pytest
import torch

from dpk_det.engine import check


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
    # a teacher that divides by nothing
    opts = ("DISTILL.TEACHER.OPTS", "['MODEL.PIXEL_STD', [0.0, 1.0, 1.0]]")
    with pytest.raises(SystemExit) as stop:
        command("--config-file", tiny.dpk, "--check", "OUTPUT_DIR", tmp_path, *opts)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The first step on made-up images failed (loss_dpk is nan)")


def test_it_tries_as_many_images_as_a_process_will_get_two_at_most(tiny, monkeypatch):
    import sys

    module = sys.modules["dpk_det.engine.check"]  # the package's name is that of the function
    tried = []
    make = module.made_up_batch

    def made_up(cfg, num_images):
        tried.append(num_images)
        return make(cfg, num_images)

    monkeypatch.setattr(module, "made_up_batch", made_up)
    for ims_per_batch in (1, 8):
        check(tiny.cfg("plain", "SOLVER.IMS_PER_BATCH", ims_per_batch))
    assert tried == [1, 2]

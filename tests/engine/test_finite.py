"""Trainings whose numbers become infinite or NaN: one sentence, no traceback, nothing saved."""

import pytest
import torch
from torch import nn

from dpk_det.engine import DistillTrainer
from dpk_det.engine.finite import explain, require_finite
from dpk_det.errors import UserError

HUGE_RATE = ("SOLVER.BASE_LR", "1e6")
# what becomes of the student's images
NO_DEVIATION = ("MODEL.PIXEL_STD", "[1e-44, 1.0, 1.0]")


@pytest.fixture
def fails(command, capsys, tmp_path):
    """Runs a training that must end with status 2, one sentence and no traceback: the sentence."""

    def run(config, *opts):
        with pytest.raises(SystemExit) as stop:
            command("--config-file", config, "OUTPUT_DIR", tmp_path, *opts)
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err + (tmp_path / "log.txt").read_text()
        assert not (tmp_path / "model_final.pth").exists()
        assert not (tmp_path / "inference").exists()
        (line,) = err.splitlines()
        return line

    return run


@pytest.mark.parametrize("kind", ["plain", "dpk"])
def test_a_learning_rate_that_is_too_high(tiny, fails, kind):
    line = fails(getattr(tiny, kind), *HUGE_RATE)
    assert "Training stopped in step " in line
    assert "resume from there with a lower SOLVER.BASE_LR" in line


def test_a_loss_is_named(tiny, fails):
    # the teacher divides by next to nothing
    opts = ("DISTILL.TEACHER.OPTS", "['MODEL.PIXEL_STD', [1e-44, 1.0, 1.0]]")
    assert "Training stopped in step 1: loss_dpk is nan; what it saved" in fails(tiny.dpk, *opts)


@pytest.mark.parametrize("kind", ["plain", "dpk"])
def test_images_that_are_no_numbers(tiny, fails, kind):
    line = fails(getattr(tiny, kind), *NO_DEVIATION)
    assert "Training stopped in step 1: Predicted boxes or scores contain Inf/NaN" in line
    assert "(the weights are finite, the largest is " in line


@pytest.fixture
def spoil(monkeypatch):
    """``spoil(when, value)``: makes a weight infinite "before" or "after" the second step."""

    def spoil(when, value):
        intact = DistillTrainer.run_step

        def run_step(self):
            weight = self.model.roi_heads.box_head.fc1.weight.data
            if self.iter == 1 and when == "before":
                weight[0, 0] = value
            intact(self)
            if self.iter == 1:
                weight[0, 0] = value

        monkeypatch.setattr(DistillTrainer, "run_step", run_step)

    return spoil


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_infinite_before_a_step(tiny, fails, spoil, value):
    spoil("before", value)
    line = fails(tiny.plain)
    assert "Training stopped in step 2: loss_cls is nan" in line
    assert "before: roi_heads.box_head.fc1.weight)" in line


@pytest.mark.parametrize("opts", [("SOLVER.MAX_ITER", "2"), ("SOLVER.CHECKPOINT_PERIOD", "2")])
def test_an_update_that_makes_weights_infinite_is_not_saved(tiny, fails, spoil, tmp_path, opts):
    spoil("after", float("inf"))
    line = fails(tiny.plain, *opts)
    assert "Training stopped after step 2, whose update made weights infinite or NaN (" in line
    assert not list(tmp_path.glob("*.pth"))


def test_an_exception_is_a_bug_where_the_weights_are_finite():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    model.register_buffer("mask", torch.tensor(-float("inf")))  # as attention may have
    require_finite(model, 1, "out")
    model[0].weight.data.fill_(-1e30)
    line = str(explain(FloatingPointError("Boxes contain NaN."), model, 2, "out"))
    assert "step 2: Boxes contain NaN (the weights are finite, the largest is 1e+30 in 0.w" in line
    assert explain(RuntimeError("out of luck"), model, 1, "out") is None
    model[1].running_var.fill_(float("nan"))
    with pytest.raises(UserError, match=r"after step 1, .* \(1.running_var\); .* kept in out:"):
        require_finite(model, 1, "out")
    assert "step 7: AssertionError had" in str(explain(AssertionError("had"), model, 7, "out"))

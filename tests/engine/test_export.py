"""Exporting: the plain student and nothing else, as Detectron2 loads it."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from dpk_det.engine import export_student
from dpk_det.errors import UserError


def test_the_plain_detector_is_written_whole_and_alone(tiny, trained, tmp_path, batch):
    checkpoint, output = trained / "model_final.pth", tmp_path / "new" / "student.pth"
    line = export_student(str(tiny.dpk), str(checkpoint), str(output))

    content, trained_state = torch.load(output), torch.load(checkpoint)["model"]
    plain = build_model(tiny.cfg("plain")).eval()
    assert list(content) == ["model"]
    assert list(content["model"]) == list(plain.state_dict())
    assert all(torch.equal(x, trained_state[name]) for name, x in content["model"].items())
    parameters = sum(p.numel() for p in plain.parameters())
    assert line == f"Wrote {output}: GeneralizedRCNN with {parameters:,} parameters."

    DetectionCheckpointer(plain).load(str(output))
    distilling = tiny.build("dpk").eval()
    distilling.load_state_dict(trained_state)
    with torch.no_grad():
        ours, theirs = (model(batch)[0]["instances"] for model in (plain, distilling))
    assert len(ours) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_the_teacher_need_not_be_there(tiny, trained, tmp_path):
    opts = ["DISTILL.TEACHER.CONFIG_FILE", "gone.yaml"]
    output = tmp_path / "student.pth"
    export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(output), opts)
    assert output.exists()


def test_a_checkpoint_that_lacks_a_weight_is_refused(tiny, trained, tmp_path):
    saved = torch.load(trained / "model_final.pth")
    saved["model"].pop("roi_heads.box_head.fc1.bias")
    torch.save(saved, tmp_path / "partial.pth")
    output = tmp_path / "student.pth"
    with pytest.raises(UserError, match="1 is missing from the file, roi_heads.box_head.fc1.bias"):
        export_student(str(tiny.dpk), str(tmp_path / "partial.pth"), str(output))
    assert not output.exists()


def test_an_absent_checkpoint_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        export_student(str(tiny.dpk), str(tmp_path / "gone.pth"), str(tmp_path / "student.pth"))

"""Exporting: the plain student and nothing else, as weights; files whole or absent."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from safetensors import safe_open
from safetensors.torch import load_file

from dpk_det.deploy.export import export_student
from dpk_det.deploy.predict import predict
from dpk_det.errors import UserError
from dpk_det.pairing.teacher import load_teacher


def test_the_plain_detector_is_written_whole_and_alone(tiny, trained, tmp_path, batch):
    checkpoint, output = trained / "model_final.pth", tmp_path / "new" / "student.pth"
    line = export_student(str(tiny.dpk), str(checkpoint), str(output))

    content, trained_state = torch.load(output), torch.load(checkpoint)["model"]
    plain = build_model(tiny.cfg("plain")).eval()
    assert list(content) == ["model"]
    assert list(content["model"]) == list(plain.state_dict())
    assert all(torch.equal(x, trained_state[name]) for name, x in content["model"].items())
    parameters = sum(p.numel() for p in plain.parameters())
    assert line.startswith(f"Wrote {output}: GeneralizedRCNN with {parameters:,} parameters.")

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


def test_a_suffix_that_names_no_form_is_refused(tiny, trained, tmp_path):
    output = tmp_path / "new" / "student.pt"
    with pytest.raises(
        UserError, match=r"student.pt names no form .*: end it in .pth, .safetensors, .ts"
    ):
        export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(output))
    assert not output.parent.exists()


# ------------------------------------------------------------------ safetensors


@pytest.fixture(scope="module")
def students(tiny, trained, tmp_path_factory):
    """The same student as .pth and as .safetensors."""
    folder = tmp_path_factory.mktemp("students")
    files = [folder / "a.pth", folder / "b.safetensors"]
    for file in files:
        export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(file))
    return files


def test_safetensors_hold_the_weights_alone_and_have_the_plain_config_beside_them(students):
    pth, safe = students
    expected = torch.load(pth)["model"]
    found = load_file(safe)
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())
    with safe_open(safe, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    configs = [x.with_suffix(".yaml").read_text() for x in students]
    assert configs[0].replace(str(pth), str(safe)) == configs[1]


def test_safetensors_are_a_teachers_weights(tiny, students):
    expected = torch.load(students[0])["model"]
    found = load_teacher(str(tiny.plain), str(students[1])).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


def test_predictions_and_evaluations_of_safetensors_are_those_of_pth(
    tiny, students, tmp_path, command
):
    found = []
    for file in students:
        images, output = [tiny.plain.parent / "images" / "1.png"], tmp_path / file.stem
        predict(tiny.cfg("plain"), str(file), images, output, 0.0, drawings=False)
        content = json.loads((output / "predictions.json").read_text())
        opts = ("MODEL.WEIGHTS", file, "OUTPUT_DIR", output)
        results = command("--config-file", tiny.plain, "--eval-only", *opts)
        detections = json.loads((output / "inference/coco_instances_results.json").read_text())
        found.append((content["annotations"], results["bbox"], detections))
    annotations, _, detections = found[0]
    assert annotations and detections
    assert str(found[0]) == str(found[1])  # NaN, of a class without objects, is unlike itself


@META_ARCH_REGISTRY.register()
class Tied(torch.nn.Module):
    """Two names of one weight, which is not in C's order."""

    def __init__(self, cfg):
        super().__init__()
        self.a = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.b = self.a


def test_weights_that_share_memory_are_each_written(tiny, tmp_path):
    opts = ["MODEL.META_ARCHITECTURE", "Tied", "MODEL.DEVICE", "cpu"]
    weights = torch.arange(6.0).reshape(3, 2)
    torch.save({"model": {"a": weights, "b": weights}}, tmp_path / "model.pth")
    output = tmp_path / "student.safetensors"
    export_student(str(tiny.plain), str(tmp_path / "model.pth"), str(output), opts)
    found = load_file(output)
    assert torch.equal(found["a"], weights) and torch.equal(found["b"], weights)


# ------------------------------------------------------------------ files

needs_onnx = pytest.mark.skipif(not importlib.util.find_spec("onnx"), reason="needs onnx")


@pytest.mark.parametrize(
    "suffix", [".pth", ".safetensors", ".ts", pytest.param(".onnx", marks=needs_onnx)]
)
def test_a_full_disk_leaves_what_was_there(tiny, trained, tmp_path, little_space, suffix):
    checkpoint, output = str(trained / "model_final.pth"), str(tmp_path / f"student{suffix}")
    Path(output).write_text("old")
    with pytest.raises(UserError, match="could not be written"), little_space(1000):
        export_student(str(tiny.plain), checkpoint, output)
    assert Path(output).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_an_export_is_made_of_is_not_replaced(tiny, trained, tmp_path):
    checkpoint = trained / "model_final.pth"
    with pytest.raises(UserError, match="would replace .*model_final.pth, which WEIGHTS names"):
        export_student(str(tiny.dpk), str(checkpoint), f"{trained}/./model_final.pth")
    with pytest.raises(UserError, match="would replace .*plain.yaml, which --config-file names"):
        export_student(str(tiny.plain), str(checkpoint), str(tiny.plain.with_suffix(".pth")))
    assert "iteration" in torch.load(checkpoint)


def test_a_config_that_no_export_has_written_is_not_replaced(tiny, trained, tmp_path):
    checkpoint = str(trained / "model_final.pth")
    base, student = tmp_path / "base.yaml", tmp_path / "student.yaml"
    written = f"# The plain twin of student.yaml.\n{tiny.plain.read_text()}"
    base.write_text(written)
    student.write_text('_BASE_: "base.yaml"\n')
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(UserError, match="would replace .*base.yaml, which no export has writ"):
            export_student(str(student), checkpoint, str(base.with_suffix(suffix)))
    assert base.read_text() == written
    assert len(list(tmp_path.iterdir())) == 2
    export_student(str(student), checkpoint, str(tmp_path / "new.pth"))
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.25"]
    export_student(str(student), checkpoint, str(tmp_path / "new.pth"), opts)
    assert "SCORE_THRESH_TEST: 0.25" in (tmp_path / "new.yaml").read_text()


def test_torchscript_may_stand_beside_the_config_that_it_is_made_of(tiny, trained, tmp_path):
    config = tmp_path / "student.yaml"
    config.write_text(tiny.plain.read_text())
    output = tmp_path / "student.ts"
    export_student(str(config), str(trained / "model_final.pth"), str(output))
    assert output.exists() and config.read_text() == tiny.plain.read_text()

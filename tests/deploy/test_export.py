"""Exporting: the plain student and nothing else, in each form the same detections."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import build_model

import dpk_det
from dpk_det.deploy.export import export_student
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
    with pytest.raises(UserError, match=r"student.pt names no form .*: end it in .pth, .ts, .onnx"):
        export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(output))
    assert not output.parent.exists()


# ------------------------------------------------------------------ TorchScript and ONNX

FIELDS = {
    "boxes": lambda x: x.pred_boxes.tensor,
    "classes": lambda x: x.pred_classes,
    "scores": lambda x: x.scores,
    "keypoints": lambda x: x.pred_keypoints,
}
SIZES = [(64, 85), (96, 64), (80, 112), (50, 33)]  # the first is the example's that is traced
NOISE = torch.Generator().manual_seed(5)
IMAGES = [torch.randint(256, (3, *size), generator=NOISE).float() for size in SIZES]
IMAGES += [scale * IMAGES[0] for scale in (0.1, 0.3, 2)]
KINDS = ["faster", "mask", "cascade", "retinanet", "fcos", "panoptic"]

# In a process of its own: neither Detectron2 nor dpk_det may be needed.
RUN = """
import sys, torch, torchvision

def load(path):
    if path.endswith(".ts"):
        return torch.jit.load(path)
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    names = [x.name for x in session.get_outputs()]
    given = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(y) for y in session.run(names, {given: x.numpy()})]

images, found = torch.load(sys.argv[1]), {}
with torch.jit.optimized_execution(False):  # optimizing takes longer than running
    for path in sys.argv[2:]:
        model = load(path)
        found[path] = [list(model(x)) for x in images]
torch.save(found, sys.argv[1])
assert not {"detectron2", "dpk_det"} & sys.modules.keys()
"""
HAS_ONNX = all(importlib.util.find_spec(x) for x in ("onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the packages onnx and onnxruntime")


def run_alone(files, images):
    """What files say of images: by file, a dict by name of the output for each image."""
    exchange = files[0].parent / "exchange.pth"
    torch.save(images, exchange)
    command = [sys.executable, "-W", "ignore", "-c", RUN, exchange, *files]
    subprocess.run([str(x) for x in command], check=True)
    found = torch.load(exchange)
    names = {x: json.loads(Path(f"{x}.json").read_text())["outputs"] for x in files}
    return {x: [dict(zip(names[x], y, strict=True)) for y in found[str(x)]] for x in files}


def run_all(tiny, variant, folder, kinds, suffix):
    """Export each kind and run the files: by kind, what they and what the models say.

    "limit" is a Mask R-CNN that finds something in four of the seven images.
    """
    model, *_ = variant("mask")
    with torch.no_grad():
        tops = sorted(model([{"image": x}])[0]["instances"].scores.max().item() for x in IMAGES)
    limit = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", str((tops[2] + tops[3]) / 2)]
    files, expected = {}, {}
    for kind in (*kinds, "limit"):
        model, opts, weights = variant("mask" if kind == "limit" else kind)
        if kind == "limit":
            opts = opts + limit
            model = tiny.build("plain", *opts).eval()
        files[kind] = folder / f"{kind}{suffix}"
        export_student(str(tiny.plain), weights, str(files[kind]), opts)
        with torch.no_grad():
            expected[kind] = [model([{"image": image}])[0] for image in IMAGES]
    found = run_alone(list(files.values()), IMAGES)
    return {kind: (found[file], expected[kind]) for kind, file in files.items()}


@pytest.fixture(scope="module")
def torchscript(tiny, variant, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchscript")
    return run_all(tiny, variant, folder, [*KINDS, "keypoint"], ".ts")


@pytest.fixture(scope="module")
def onnx(tiny, variant, tmp_path_factory):
    return run_all(tiny, variant, tmp_path_factory.mktemp("onnx"), KINDS, ".onnx")


def check_same(outputs, expected, tolerance=1e-6):
    """Compare with the models' whole answers; gives how many detections there were."""
    for image, ours, theirs in zip(IMAGES, outputs, expected, strict=True):
        instances = theirs["instances"]
        for name in ours.keys() & FIELDS.keys():
            other = FIELDS[name](instances)
            assert ours[name].shape == other.shape
            torch.testing.assert_close(ours[name].to(other), other, atol=tolerance, rtol=0)
        height, width = image.shape[1:]
        if "masks" in ours:
            assert ours["masks"].shape[1:] == (1, 12, 12)
            pasted = paste_masks_in_image(ours["masks"][:, 0], ours["boxes"], (height, width), 0.5)
            assert (pasted != instances.pred_masks).sum() <= 100 * tolerance * pasted.numel()
        if "sem_seg" in ours:
            logits = ours["sem_seg"][0, :, :height, :width]
            torch.testing.assert_close(logits, theirs["sem_seg"], atol=10 * tolerance, rtol=0)
    return [len(x["instances"]) for x in expected]


@pytest.mark.parametrize("kind", [*KINDS, "keypoint"])
def test_torchscript_detects_what_the_model_does_at_any_size(torchscript, kind):
    outputs, expected = torchscript[kind]
    assert min(check_same(outputs, expected)) > 0
    extra = {"mask": {"masks"}, "keypoint": {"keypoints"}, "panoptic": {"masks", "sem_seg"}}
    assert outputs[0].keys() == {"boxes", "classes", "scores"} | extra.get(kind, set())


@needs_onnx
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_detects_what_the_model_does_at_any_size(onnx, kind):
    assert min(check_same(*onnx[kind], tolerance=1e-4)) > 0


@pytest.mark.parametrize("form", ["torchscript", pytest.param("onnx", marks=needs_onnx)])
def test_an_image_may_hold_nothing(request, form):
    counts = check_same(*request.getfixturevalue(form)["limit"], tolerance=1e-4)
    assert [bool(x) for x in sorted(counts)] == [False] * 3 + [True] * 4


@needs_onnx
def test_keypoints_are_refused_for_onnx(tiny, variant, tmp_path):
    _, opts, weights = variant("keypoint")
    with pytest.raises(UserError, match=r"ONNX cannot hold .* keypoints.* TorchScript \(.ts\)"):
        export_student(str(tiny.plain), weights, str(tmp_path / "keypoint.onnx"), opts)


def test_what_cannot_be_traced_is_refused_in_a_sentence(tiny, trained, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such operator\nmuch more\nand more")

    monkeypatch.setattr(torch.jit, "trace", fail)
    output = tmp_path / "student.ts"
    with pytest.raises(UserError) as e:
        export_student(str(tiny.plain), str(trained / "model_final.pth"), str(output))
    assert str(e.value) == (
        "A GeneralizedRCNN like this cannot be written as TorchScript (no such operator): "
        "docs/using.md lists what can."
    )
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_package_is_refused(tiny, trained, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda x: None if x == "onnx" else find(x))
    with pytest.raises(UserError, match="takes the package onnx: pip install onnx"):
        export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(tmp_path / "a.onnx"))


def test_the_description_says_what_goes_in_and_comes_out(tiny, trained, tmp_path, caplog):
    checkpoint, output = trained / "model_final.pth", tmp_path / "student.ts"
    export_student(str(tiny.dpk), str(checkpoint), str(output), ["INPUT.FORMAT", "RGB"])
    content = json.loads((tmp_path / "student.ts.json").read_text())
    assert content["classes"] == ["square", "disc"]
    assert content["image"]["channels"] == "RGB"
    assert (content["image"]["shorter_side"], content["image"]["longer_side_at_most"]) == (64, 96)
    assert list(content["outputs"]) == ["boxes", "classes", "scores"]
    opts = ["DATASETS.TEST", "('gone',)"]
    export_student(str(tiny.dpk), str(checkpoint), str(output), opts)
    assert json.loads((tmp_path / "student.ts.json").read_text())["classes"] is None
    assert "The classes stay without names: " in caplog.text and "gone" in caplog.text


# ------------------------------------------------------------------ classifiers

BATCHES = [torch.randint(256, size, generator=NOISE).float() for size in ((2, 3, 32, 32),) * 2]
BATCHES += [BATCHES[0][:1], torch.randint(256, (5, 3, 40, 48), generator=NOISE).float()]


@pytest.mark.parametrize("network", ["resnet20", "shufflenetv1"])
def test_classifiers_say_what_the_model_does_of_any_batch(tiny_images, tmp_path, network):
    opts = ["MODEL.CIFAR.NAME", network, "INPUT.FORMAT", "RGB"]
    model = tiny_images.build("plain", *opts).eval()
    for x in model.modules():  # as a training leaves them
        if isinstance(x, torch.nn.BatchNorm2d):
            x.running_mean.normal_(generator=NOISE)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    files = [tmp_path / "student.ts", tmp_path / "student.onnx"][: 1 + HAS_ONNX]
    for file in files:
        export_student(str(tiny_images.plain), str(tmp_path / "model.pth"), str(file), opts)
    with torch.no_grad():
        expected = [model({"images": x}).softmax(1) for x in BATCHES]
    for file, found in run_alone(files, BATCHES).items():
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, {"scores": theirs}, atol=1e-5, rtol=0)
        content = json.loads(Path(f"{file}.json").read_text())
        assert list(content) == ["images", "outputs", "classes"]
        assert content["images"]["channels"] == "RGB" and content["images"]["shorter_side"] == 32
        assert content["classes"] == ["disc", "none", "square"]


# ------------------------------------------------------------------ files


def test_what_torchscript_gives_wants_no_gradients(tiny, trained, tmp_path):
    output = tmp_path / "student.ts"
    export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(output))
    student = torch.jit.load(output)
    assert student.state_dict() and not any(x.requires_grad for x in student.parameters())
    with torch.enable_grad(), torch.jit.optimized_execution(False):
        assert not any(x.requires_grad for x in student(IMAGES[0]))


@pytest.mark.parametrize("suffix", [".pth", ".ts", pytest.param(".onnx", marks=needs_onnx)])
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


# ------------------------------------------------------------------ the plain config

# Detectron2's own ResNet below its own FPN, as small as it gets
RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
}
# In a process without dpk_det.
PREDICT = """
import sys, torch
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor

cfg = get_cfg()
cfg.merge_from_file(sys.argv[1])
found = DefaultPredictor(cfg)(read_image(sys.argv[2], "BGR"))["instances"]
torch.save([found.pred_boxes.tensor, found.scores], sys.argv[3])
assert "dpk_det" not in sys.modules
"""


def test_unmodified_detectron2_reads_the_plain_config(tiny, tmp_path):
    opts = [str(x) for pair in RESNET.items() for x in pair]
    opts += ["INPUT.FORMAT", "RGB", "DISTILL.TEACHER.CONFIG_FILE", "gone.yaml"]
    model = tiny.build("plain", *opts).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    line = export_student(
        str(tiny.dpk), str(tmp_path / "model.pth"), str(tmp_path / "student.pth"), opts
    )
    assert line.endswith("parameters.")
    image, out = tiny.plain.parent / "images" / "1.png", tmp_path / "found.pth"
    command = [sys.executable, "-W", "ignore", "-c", PREDICT, tmp_path / "student.yaml", image, out]
    subprocess.run([str(x) for x in command], check=True, cwd=tmp_path)
    boxes, scores = torch.load(out)
    predictor = DefaultPredictor(tiny.cfg("plain", *opts, "MODEL.WEIGHTS", tmp_path / "model.pth"))
    expected = predictor(read_image(str(image), "BGR"))["instances"]
    assert len(boxes) == len(expected) > 0
    assert torch.equal(boxes, expected.pred_boxes.tensor) and torch.equal(scores, expected.scores)


def test_the_plain_config_is_short_and_says_what_it_needs(tiny, trained, tmp_path):
    output = tmp_path / "student.pth"
    line = export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(output))
    need = "Detectron2 has no build_small_resnet_fpn_backbone (dpk_det): import dpk_det first"
    assert need in line
    text = (tmp_path / "student.yaml").read_text()
    assert need in text and len(text) < 2000
    content = yaml.safe_load(text)
    assert content["MODEL"]["META_ARCHITECTURE"] == "GeneralizedRCNN"
    assert content["MODEL"]["WEIGHTS"] == str(output)
    assert not content.keys() & {"DISTILL", "OUTPUT_DIR", "IMPORTS"}
    cfg = get_cfg()
    dpk_det.add_dpk_config(cfg)
    cfg.merge_from_file(str(tmp_path / "student.yaml"))
    build_model(cfg).load_state_dict(torch.load(output)["model"])

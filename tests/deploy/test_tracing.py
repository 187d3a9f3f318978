"""TorchScript and ONNX: without Detectron2 the same detections and classes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.layers import paste_masks_in_image

from dpk_det.deploy.export import export_student
from dpk_det.errors import UserError

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
    # a fake: what newer versions of torch cannot trace, nobody knows
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
    find = importlib.util.find_spec  # a fake, for the package is there
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


# ------------------------------------------------------------------ gradients


def test_what_torchscript_gives_wants_no_gradients(tiny, trained, tmp_path):
    output = tmp_path / "student.ts"
    export_student(str(tiny.dpk), str(trained / "model_final.pth"), str(output))
    student = torch.jit.load(output)
    assert student.state_dict() and not any(x.requires_grad for x in student.parameters())
    with torch.enable_grad(), torch.jit.optimized_execution(False):
        assert not any(x.requires_grad for x in student(IMAGES[0]))

"""The example of a dataset of one's own: its converter, and every command of its README."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.model_zoo import get_checkpoint_url, get_config
from detectron2.modeling import build_model
from pycocotools.coco import COCO

from dpk_det.config.loading import load_config
from dpk_det.data import shapes
from dpk_det.data.shapes import draw_image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "custom_dataset"
CLASSES = ["round", "polygon", "spiky"]
CLASS_OF = {
    "circle": "round",
    "ring": "round",
    "square": "polygon",
    "triangle": "polygon",
    "star": "spiky",
    "cross": "spiky",
}

# appended to a training: the same commands in seconds
TINY = "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 MODEL.DEVICE cpu".split()
SMALL_DATA = ["--train", "4", "--val", "3"]


def start(script, *argv):
    """Run a script in this process as from the command line."""
    before, sys.argv = sys.argv, [str(script), *map(str, argv)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom") / "voc"
    start(EXAMPLE / "make_data.py", folder, "--train", 12, "--val", 3)
    return folder


@pytest.fixture
def convert(tmp_path):
    """``convert(annotations, ...)`` gives the content of the JSON file."""

    def call(annotations, *argv):
        output = tmp_path / "new" / "out.json"
        start(EXAMPLE / "voc_to_coco.py", annotations, output, *argv)
        return json.loads(output.read_text())

    return call


# ------------------------------------------------------------------ the converter


def test_it_agrees_with_detectron2s_own_reader(voc, convert):
    split = voc / "ImageSets" / "Main" / "train.txt"
    content = convert(voc / "Annotations", "--classes", *CLASSES, "--split", split)
    records = load_voc_instances(str(voc), "train", CLASSES)
    assert len(content["images"]) == len(records) == 12
    assert [x["name"] for x in content["categories"]] == CLASSES
    total = 0
    for image, record in zip(content["images"], records, strict=True):
        assert image["file_name"] == Path(record["file_name"]).name
        assert (image["height"], image["width"]) == (record["height"], record["width"])
        ours = [x for x in content["annotations"] if x["image_id"] == image["id"]]
        assert len(ours) == len(record["annotations"])
        for a, b in zip(ours, record["annotations"], strict=True):
            x, y, width, height = a["bbox"]
            assert [x, y, x + width, y + height] == b["bbox"]
            assert a["category_id"] - 1 == b["category_id"]
            assert a["area"] == width * height > 0
        total += len(ours)
    assert total == len(content["annotations"]) > 12


def test_boxes_are_those_that_were_drawn(voc, convert):
    content = convert(voc / "Annotations", "--classes", *CLASSES)
    assert len(content["images"]) == 15  # without --split all of them
    total = 0
    for i, image in enumerate(x for x in content["images"] if x["file_name"].startswith("train")):
        pixels, objects = draw_image(100, i)
        found = [x for x in content["annotations"] if x["image_id"] == image["id"]]
        for a, b in zip(found, objects, strict=True):
            shape = shapes.CLASSES[b["category_id"] - 1]
            assert CLASSES[a["category_id"] - 1] == CLASS_OF[shape]
            assert np.abs(np.subtract(a["bbox"], b["bbox"])).max() <= 1  # corners: whole pixels
        total += len(found)
        photo = cv2.imread(str(voc / "JPEGImages" / image["file_name"]))
        assert np.abs(photo.astype(int) - pixels).mean() < 10  # JPEG
    assert total > 12


# ------------------------------------------------------------------ the README's commands


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """A folder that looks like the repository's, its datasets registered for this test alone."""
    for name in ("configs", "examples", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield tmp_path
    DatasetCatalog.data, MetadataCatalog.data = before


def test_every_command_of_the_readme_runs(in_a_folder, command):
    # trainings run in this process: `command` spares Detectron2's long look at the machine
    block, _ = re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    lines = block.splitlines()
    assert len(lines) == 10
    for line in lines:
        python, script, *argv = shlex.split(line)
        assert python == "python"
        if script.endswith("make_data.py"):
            argv += SMALL_DATA
        elif script.endswith("train_net.py"):
            argv += TINY
        elif script.endswith("predict.py"):
            argv += ["--threshold", "0"]
        start(script, *argv)

    output = in_a_folder / "output" / "custom"
    for name in ("teacher", "student", "distilled"):
        summary = json.loads((output / name / "results.json").read_text())
        assert summary["results"]["bbox"].keys() >= {"AP", *(f"AP-{x}" for x in CLASSES)}
        assert bool(summary["distiller_parameters"]) == (name == "distilled")
    found = COCO(str(output / "found" / "predictions.json"))
    assert [x["name"] for x in found.loadCats(found.getCatIds())] == CLASSES
    assert len(found.getImgIds()) == 3 and found.getAnnIds()
    assert len(list((output / "found" / "drawings").iterdir())) == 3
    plain = torch.load(output / "student.pth")["model"]
    assert not any(name.startswith("distiller.") for name in plain)
    boxes, classes, scores = torch.jit.load(output / "student.ts")(255 * torch.rand(3, 96, 96))
    assert boxes.shape == (len(scores), 4)
    assert json.loads((output / "student.ts.json").read_text())["classes"] == CLASSES


# ------------------------------------------------------------------ the big networks


def same_shapes(state, path):
    """Weights of these shapes that are finite, in a file of some kilobytes: one number each."""
    state = {name: torch.full((), 0.01).expand(x.shape) for name, x in state.items()}
    torch.save({"model": state, "__author__": "Detectron2 Model Zoo"}, path)
    return str(path)


def shapes_of(cfg):
    """A detector's weights, without their numbers."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).state_dict()


@pytest.fixture(scope="module")
def big_weights(tmp_path_factory):
    """Files with the layout and shapes of the model zoo's R101, a fine-tuned one, and an R18."""
    folder = tmp_path_factory.mktemp("weights")
    zoo = get_config("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml")
    tuned = load_config(str(EXAMPLE / "big/teacher.yaml"))
    return {
        "zoo": same_shapes(shapes_of(zoo), folder / "zoo.pth"),
        "tuned": same_shapes(shapes_of(tuned), folder / "tuned.pth"),
        "R18": same_shapes(torchvision.models.resnet18().state_dict(), folder / "R18.pth"),
    }


@pytest.fixture
def check_big(in_a_folder, voc, command, capsys, big_weights):
    """``check_big(name, student's weights)`` gives the lines that --check has to say of them."""
    (in_a_folder / "output/custom").mkdir(parents=True)
    (in_a_folder / "output/custom/voc").symlink_to(voc)
    for split in ("train", "val"):
        path = f"output/custom/{split}.json"
        listed = voc / f"ImageSets/Main/{split}.txt"
        argv = (voc / "Annotations", path, "--classes", *CLASSES, "--split", listed)
        start(EXAMPLE / "voc_to_coco.py", *argv)

    def check(name, weights):
        opts = ["MODEL.WEIGHTS", big_weights[weights], "SOLVER.IMS_PER_BATCH", 1]
        opts += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu"]
        if name == "distilled":
            opts += ["DISTILL.TEACHER.WEIGHTS", big_weights["tuned"]]
        command("--config-file", f"examples/custom_dataset/big/{name}.yaml", "--check", *opts)
        report = capsys.readouterr().out
        assert report.rstrip().endswith("The job is ready to run.")
        return re.search(r"\nweights\n(.*?)\n\n", report, re.DOTALL)[1].splitlines()

    return check


def test_the_zoos_teacher_leaves_out_the_heads_of_other_classes_alone(check_big):
    lines = check_big("teacher", "zoo")
    count, total = map(int, re.search(r"(\d+) of (\d+) found", lines[0]).groups())
    assert {x.removeprefix("  of another shape there: ") for x in lines[1:]} == {
        f"roi_heads.box_predictor.{layer}.{kind}"
        for layer in ("cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
    assert total - count == 4


@pytest.mark.parametrize("name", ["plain", "distilled"])
def test_the_big_student_finds_its_whole_backbone(check_big, name):
    lines = check_big(name, "R18")
    # Detectron2's frozen norms count no batches
    names = [x for x in torchvision.models.resnet18().state_dict() if "num_batches" not in x]
    num_backbone = len([x for x in names if not x.startswith("fc.")])
    assert lines[0].startswith(f"student: {num_backbone} of ") and "another" not in "".join(lines)
    assert ("teacher: all found" in lines) == (name == "distilled")


def test_the_big_teacher_names_the_zoos_own_file():
    cfg = load_config(str(EXAMPLE / "big/teacher.yaml"))
    zoo = get_config("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml")
    url = get_checkpoint_url("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml")
    assert url.endswith(cfg.MODEL.WEIGHTS.removeprefix("detectron2://"))
    assert cfg.MODEL.RESNETS == zoo.MODEL.RESNETS and cfg.INPUT.FORMAT == zoo.INPUT.FORMAT
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        assert cfg.MODEL[key] == zoo.MODEL[key]

"""The plain config: what unmodified Detectron2 builds the exported student from."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

import dpk_det
from dpk_det.deploy.export import export_student
from dpk_det.deploy.predict import run

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


@pytest.mark.parametrize(
    ("parts", "classes"), [({}, ["square", "disc"]), (RESNET, ["0", "1"])], ids=["ours", "theirs"]
)
def test_predict_reads_the_plain_config(tiny, tmp_path, monkeypatch, parts, classes):
    images = tiny.plain.parent / "images"
    opts = [str(x) for pair in parts.items() for x in pair]
    # a name that nothing has registered
    opts += ["DATASETS.JSON.own", f"['{images}.json', '{images}']"]
    opts += ["DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)"]
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
    model = dpk_det.plain_architecture(dpk_det.load_config(str(tiny.plain), opts))
    torch.save({"model": build_model(model).state_dict()}, tmp_path / "model.pth")
    output, found = tmp_path / "student.pth", tmp_path / "found"
    export_student(str(tiny.plain), str(tmp_path / "model.pth"), str(output), opts)
    argv = ["--config-file", output.with_suffix(".yaml"), "--weights", output]
    argv += ["--no-drawings", "--output", found, "--input", images / "1.png"]
    run([str(x) for x in argv])
    content = json.loads((found / "predictions.json").read_text())
    assert [x["name"] for x in content["categories"]] == classes


def test_datasets_that_others_register_stay_in_detectron2s_config(tiny, tmp_path):
    opts = [str(x) for pair in RESNET.items() for x in pair]
    opts += ["DATASETS.TRAIN", "('tiny', 'coco_2017_train')", "DATASETS.TEST", "('tiny',)"]
    torch.save({"model": tiny.build("plain", *opts).state_dict()}, tmp_path / "model.pth")
    output = str(tmp_path / "student.pth")
    export_student(str(tiny.plain), str(tmp_path / "model.pth"), output, opts)
    content = yaml.safe_load((tmp_path / "student.yaml").read_text())
    assert content["DATASETS"] == {"TRAIN": ["coco_2017_train"]}

"""``dpk-det init``: its files load, fit each other, and are not written over others."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from dpk_det.architectures import plain_name
from dpk_det.cli import main
from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite
from dpk_det.config.loading import load_config
from dpk_det.config.methods import method_arguments
from dpk_det.distill import build_distiller
from dpk_det.engine.start import teacher_weights
from dpk_det.pairing.levels import pair_levels
from dpk_det.pairing.teacher import ZOO_EXAMPLE, load_teacher_config
from dpk_det.project.presets import PRESETS

RETINANET = "COCO-Detection/retinanet_R_101_FPN_3x.yaml"
RESNEXT = "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml"
MASKS = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
WRITTEN = ["data.yaml", "distilled.yaml", "plain.yaml", "suite.yaml", "teacher.yaml"]


@pytest.fixture
def data(tiny, tmp_path, monkeypatch):
    """--train and --val of the tiny data set, with the folder of the test as working directory."""
    monkeypatch.chdir(tmp_path)
    paths = tiny.cfg("plain").DATASETS.JSON.tiny
    return ["--train", *paths, "--val", *paths]


@pytest.fixture
def init(data, capsys):
    """``init(*argv)`` writes to the folder my, or says what is wrong."""

    def call(*argv, folder="my"):
        try:
            main(["init", folder, *data, *argv])
        except SystemExit:
            raise AssertionError(capsys.readouterr().err) from None
        return capsys.readouterr().out

    return call


def take(data, content):
    """Let --train and --val name a file in the working directory with this content."""
    Path("own.json").write_text(json.dumps(content))
    data[1] = data[4] = "own.json"


def model(cfg):
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = plain_name(cfg.MODEL.META_ARCHITECTURE)
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = False, ""
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize(
    ("teacher", "student", "distilling"),
    [
        (ZOO_EXAMPLE, "resnet18", "DistillRCNN"),
        (ZOO_EXAMPLE, "mobilenetv2_100", "DistillRCNN"),
        (RETINANET, "resnet50", "DistillRetinaNet"),
        (RETINANET, "efficientnet_lite0", "DistillRetinaNet"),
        (RESNEXT, "resnet34", "DistillRCNN"),
        (MASKS, "resnet18", "DistillRCNN"),
        ("tf_efficientnet_lite2", "tf_efficientnet_lite0", "DistillRCNN"),
        ("resnet50", "resnet18", "DistillRCNN"),
    ],
)
def test_student_and_teacher_fit_each_other(init, teacher, student, distilling):
    init("--teacher", teacher, "--student", student, "--gpus", "1")
    assert sorted(x.name for x in Path("my").iterdir()) == WRITTEN
    plain, distilled = (load_config(f"my/{name}.yaml") for name in ("plain", "distilled"))
    assert distilled.MODEL.META_ARCHITECTURE == distilling
    assert plain_name(distilling) == plain.MODEL.META_ARCHITECTURE
    big = load_teacher_config(distilled.DISTILL.TEACHER.CONFIG_FILE)
    small_model, big_model = model(distilled), model(big)
    counts = [sum(p.numel() for p in x.backbone.parameters()) for x in (small_model, big_model)]
    assert counts[0] < counts[1]
    shapes = [x.backbone.output_shape() for x in (small_model, big_model)]
    levels = pair_levels(*shapes, distilled.DISTILL.LEVELS)
    assert len(levels) == len(shapes[0]) == len(shapes[1])
    assert build_distiller(method_arguments(distilled), levels)
    # heads are inherited whole
    heads = [
        {k: v.shape for k, v in x.state_dict().items() if not k.startswith("backbone.")}
        for x in (small_model, big_model)
    ]
    heads = [{k: v for k, v in x.items() if not k.startswith("pixel")} for x in heads]
    assert heads[0] == heads[1]
    suite = read_suite(Path("my/suite.yaml"))
    assert [*suite.methods] == ["plain", "inherit", "distilled"] and suite.equal_time is True
    assert len(plan(suite, Path("runs")).runs) >= 10


@pytest.mark.parametrize("method", PRESETS)
def test_every_method_sets_what_belongs_together(init, method):
    init("--method", method)
    cfg = load_config("my/distilled.yaml")
    wanted = {
        "dpk-inherit": ["dpk"],
        "dpk": ["dpk"],
        "dpk+dkd": ["dpk", "dkd"],
        "dpk-paper": ["dpk"],
        "pkd": ["pkd"],
        "pkd+dkd": ["pkd", "dkd"],
        "cwd-inherit": ["cwd"],
    }[method]
    assert wanted == cfg.DISTILL.METHODS
    assert cfg.DISTILL.INHERIT == method.endswith("-inherit")
    suite = read_suite(Path("my/suite.yaml"))
    assert ("inherit" in suite.methods) == cfg.DISTILL.INHERIT
    assert suite.methods["distilled"].baseline == ("inherit" if cfg.DISTILL.INHERIT else "plain")
    if cfg.DISTILL.INHERIT and "dpk" in wanted:
        assert (cfg.DISTILL.DPK.TARGET, cfg.DISTILL.DPK.LOSS) == ("raw", "cwd")


def test_a_teacher_that_knows_the_classes_is_not_trained(init, tiny):
    init("--teacher", str(tiny.teacher), "--teacher-weights", str(tiny.weights))
    assert not Path("my/teacher.yaml").exists()
    cfg = load_config("my/distilled.yaml")
    assert Path(cfg.DISTILL.TEACHER.CONFIG_FILE).samefile(tiny.teacher)
    assert Path(cfg.DISTILL.TEACHER.WEIGHTS).samefile(tiny.weights)
    assert read_suite(Path("my/suite.yaml")).teachers["teacher"].weights == str(tiny.weights)


@pytest.mark.parametrize("name", ["configs/plain_frcnn_r50.yaml", "~/mine.yaml", "mine.yaml"])
def test_a_teachers_config_is_found_from_the_written_files(init, monkeypatch, tmp_path, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if "mine" in name:
        path = Path(name).expanduser()
        path.parent.mkdir(exist_ok=True)
        path.write_text('_BASE_: "configs/plain_frcnn_r50.yaml"\n')
    init("--teacher", name)
    assert load_config("my/teacher.yaml").MODEL.RESNETS.DEPTH == 50


def test_given_weights_of_a_zoos_teacher_are_taken(init, data, tmp_path, monkeypatch):
    (tmp_path / "mine.pth").touch()
    monkeypatch.setattr("dpk_det.project.networks.teacher_classes", lambda cfg: None)
    monkeypatch.setattr("dpk_det.project.networks.num_classes", lambda cfg: 2)  # as the data
    init("--teacher", ZOO_EXAMPLE, "--teacher-weights", "mine.pth")
    assert not Path("my/teacher.yaml").exists()
    assert load_config("my/distilled.yaml").DISTILL.TEACHER.WEIGHTS == "mine.pth"
    assert read_suite(Path("my/suite.yaml")).teachers["teacher"].weights == "mine.pth"


@pytest.mark.parametrize("name", ["my #2", "a: b", 'q"x', "cats, dogs", "[1]", "it's"])
def test_a_folder_may_have_any_name(init, name):
    init(folder=name)
    for file in ("plain", "distilled", "teacher"):
        assert load_config(f"{name}/{file}.yaml").DATASETS.TRAIN == (f"{name}_train",)
    suite = read_suite(Path(name, "suite.yaml"))
    assert suite.title == name and suite.methods["plain"].config == f"{name}/plain.yaml"


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x0b"])
def test_names_of_classes_write_no_config(init, data, end):
    content = json.loads(Path(data[1]).read_text())
    content["categories"][0]["name"] = f"b{end}IMPORTS: [evil]{end}#"
    take(data, content)
    init()
    assert list(load_config("my/plain.yaml").IMPORTS) == []


def test_masks_that_are_codes_are_read_as_such(init, data):
    content = json.loads(Path(data[1]).read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = {"size": [1, 1], "counts": [0, 1]}
    take(data, content)
    init("--teacher", MASKS)
    assert load_config("my/plain.yaml").INPUT.MASK_FORMAT == "bitmask"
    init("--teacher", ZOO_EXAMPLE, folder="boxes")
    assert "MASK_FORMAT" not in Path("boxes/data.yaml").read_text()


def test_a_teacher_of_other_classes_starts_with_its_weights(init):
    init("--seeds", "2")
    teacher, plain = load_config("my/teacher.yaml"), load_config("my/plain.yaml")
    assert teacher.MODEL.WEIGHTS.endswith("model_final_f6e8b1.pkl")
    assert teacher.MODEL.RESNETS.DEPTH == 101 and teacher.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert teacher.DATASETS == plain.DATASETS and teacher.SOLVER == plain.SOLVER
    assert teacher.SOLVER.BASE_LR == pytest.approx(0.02 * teacher.SOLVER.IMS_PER_BATCH / 16)
    assert read_suite(Path("my/suite.yaml")).seeds == (1, 2)


def test_own_weights_of_networks(init):
    names = ["--teacher", "resnet34", "--student", "mobilenetv2_100"]
    for name in ("big.pth", "small.pth"):
        Path(name).touch()
    init(*names, "--teacher-weights", "big.pth", "--student-weights", "small.pth")
    assert load_config("my/teacher.yaml").MODEL.WEIGHTS == "big.pth"
    assert load_config("my/plain.yaml").MODEL.TIMM.WEIGHTS == "small.pth"
    assert load_config("my/plain.yaml").MODEL.TIMM.PRETRAINED is False


def test_converted_annotations_are_written_beside(init, data, tmp_path):
    del data[data.index("--val") :]
    out = init("--val-share", "0.25", folder="deep/my")
    assert "6 photos to train on" in out and "2 photos to evaluate on" in out
    assert "dpk-det compare deep/my/suite.yaml" in out
    cfg = load_config("deep/my/plain.yaml")
    assert cfg.DATASETS.JSON.my_train[0] == "deep/my/train.json"
    assert cfg.DATASETS.TEST == ("my_val",)
    assert len(json.loads(Path("deep/my/val.json").read_text())["images"]) == 2


def test_print_writes_nothing(init):
    out = init("--print")
    assert [line[7:] for line in out.splitlines() if line.startswith("# ---- ")] == [
        f"my/{name}" for name in ("data.yaml", "teacher.yaml", *WRITTEN[2:0:-1], "suite.yaml")
    ]
    assert not Path("my").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--teacher", "COCO-Detection/faster_rcnn_R_101.yaml"], "is neither a file below"),
        (["--teacher", "COCO-Detection/faster_rcnn_R_50_C4_3x.yaml"], "has no FPN"),
        (["--teacher", "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml"], "finds keypoints"),
        (
            ["--teacher", "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"],
            "segments the background too",
        ),
        (
            ["--teacher", "configs/classification/cifar10/plain_resnet8.yaml"],
            "is of the architecture ImageClassifier",
        ),
        (["--teacher", "rensnet50"], "no network rensnet50: did you mean resnet50?"),
        (["--student", "resnet19"], "no network resnet19: did you mean resnet1"),
        (["--method", "dpk-inherits"], "no method named 'dpk-inherits': did you mean"),
        (["--train", "a", "b", "c"], "--train takes one or two paths"),
        (["--seeds", "0"], "--seeds must be 1 or more"),
    ],
)
def test_what_cannot_be_is_told(init, argv, message):
    with pytest.raises(AssertionError, match=r"^error: ") as error:
        init(*argv)
    assert message in str(error.value)
    assert not Path("my").exists()


def test_nothing_is_overwritten(init):
    Path("my").mkdir()
    Path("my/suite.yaml").write_text("mine")
    with pytest.raises(AssertionError, match=r"my/suite\.yaml exists already"):
        init()
    assert [x.name for x in Path("my").iterdir()] == ["suite.yaml"]
    assert Path("my/suite.yaml").read_text() == "mine"


def test_only_a_teacher_without_a_config_gets_other_anchors(init, data, tmp_path):
    content = json.loads(Path(data[1]).read_text())
    for x in content["annotations"]:
        x["bbox"][2:] = [4, 4]
    Path("small.json").write_text(json.dumps(content))
    data[1] = "small.json"
    init("--teacher", "resnet50", folder="own")
    assert load_config("own/plain.yaml").MODEL.ANCHOR_GENERATOR.SIZES[0] == [16]
    init("--teacher", ZOO_EXAMPLE, folder="zoo")  # its heads were trained with these
    for name in ("plain", "teacher"):
        assert load_config(f"zoo/{name}.yaml").MODEL.ANCHOR_GENERATOR.SIZES[0] == [32]


def test_the_student_finds_the_teacher_that_the_suite_trains(init):
    out = init("--teacher", "resnet50", folder="my")
    suite = read_suite(Path("my/suite.yaml"))
    trained = plan(suite, Path("output/my/runs")).teachers["teacher"].weights
    trained.parent.mkdir(parents=True)
    trained.touch()
    assert Path(teacher_weights(load_config("my/distilled.yaml"))).samefile(trained)
    assert "dpk-det check my/plain.yaml" in out


@pytest.mark.parametrize(("gpus", "seeds"), [("0", (1,)), ("1", (1, 2, 3, 4))])
def test_without_a_gpu_a_student_is_trained_once(init, gpus, seeds):
    init("--gpus", gpus)
    assert read_suite(Path("my/suite.yaml")).seeds == seeds


@pytest.mark.parametrize("method", ["dpk+dkd", "pkd+dkd"])
def test_dkd_is_warmed_up_for_a_fifth_of_the_steps(init, method):
    init("--method", method)
    cfg = load_config("my/distilled.yaml")
    assert cfg.DISTILL.WARMUP_ITERS == cfg.SOLVER.MAX_ITER // 5 > 0


def refusal(data, capsys, *argv):
    with pytest.raises(SystemExit):
        main(["init", "my", *data, *argv])
    assert not Path("my").exists()
    return capsys.readouterr().err


def test_photos_and_weights_that_are_absent_are_told(data, capsys):
    said = refusal(data, capsys, "--student-weights", "gone.pth")
    assert "There is no file of weights gone.pth" in said
    said = refusal([*data[:2], "gone", *data[3:]], capsys)
    assert "8 of 8 photos of --train are not below gone, the first is 0.png" in said


def test_photos_without_an_object_are_counted(init, data):
    content = json.loads(Path(data[1]).read_text())
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] > 1]
    Path("less.json").write_text(json.dumps(content))
    assert "have no object" not in init()
    data[1] = "less.json"
    assert "2 of the photos to train on have no object" in init(folder="other")

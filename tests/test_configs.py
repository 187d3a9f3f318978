"""Every file below configs/."""

from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model

from dpk_det.architectures import distils, plain_name
from dpk_det.checkpoint.torchvision import rename_torchvision
from dpk_det.checkpoint.torchvision import rename_torchvision_mobilenetv2 as rename_mobilenetv2
from dpk_det.config.loading import load_config
from dpk_det.config.methods import method_arguments
from dpk_det.data.check import num_classes
from dpk_det.distill import build_distiller
from dpk_det.pairing.levels import pair_levels
from dpk_det.pairing.teacher import find_teacher_weights, load_teacher_config

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "configs").rglob("*.yaml")  # those in compare/ are suites, no training configs
CONFIGS = sorted(str(f.relative_to(ROOT)) for f in FILES if f.parent.name != "compare")
# distilling config -> its plain twins
TWINS = {
    "configs/dpk_frcnn_r101_r18.yaml": ["configs/plain_frcnn_r18.yaml"],
    "configs/dpk_frcnn_r101_r50.yaml": ["configs/plain_frcnn_r50.yaml"],
    "configs/dpk_frcnn_r50_mv2.yaml": ["configs/plain_frcnn_mv2.yaml"],
    "configs/dpk_frcnn_cascade_x101_r50.yaml": ["configs/plain_frcnn_r50.yaml"],
    "configs/dpk_mrcnn_r101_r50.yaml": ["configs/plain_mrcnn_r50.yaml"],
    "configs/dpk_mrcnn_cascade_x101_r50.yaml": ["configs/plain_mrcnn_r50.yaml"],
    "configs/dpk_retinanet_r101_r50.yaml": ["configs/plain_retinanet_r50.yaml"],
    "configs/dpk_retinanet_x101_r50.yaml": ["configs/plain_retinanet_r50.yaml"],
    "configs/dpk_fcos_retinanet_r101_r50.yaml": ["configs/plain_fcos_r50.yaml"],
    "configs/dpk_fcos_frcnn_r101_r18.yaml": ["configs/plain_fcos_r18.yaml"],
    "configs/bccd/dpk.yaml": ["configs/bccd/plain.yaml", "configs/bccd/inherit.yaml"],
    "configs/bccd_small/dpk.yaml": [
        "configs/bccd_small/plain.yaml",
        "configs/bccd_small/inherit.yaml",
    ],
    "configs/cards/dpk.yaml": ["configs/cards/plain.yaml", "configs/cards/inherit.yaml"],
    "configs/boards/dpk.yaml": ["configs/boards/plain.yaml", "configs/boards/inherit.yaml"],
    "configs/shapes/dpk.yaml": ["configs/shapes/plain.yaml", "configs/shapes/inherit.yaml"],
}
CLASSIFIERS = ROOT / "configs" / "classification"
# dpk_TEACHER_STUDENT.yaml beside plain_STUDENT.yaml; names of networks hold "_" as well
TWINS |= {
    str(path.relative_to(ROOT)): [
        str(twin.relative_to(ROOT))
        for twin in path.parent.glob("plain_*.yaml")
        if path.stem.endswith(twin.stem.removeprefix("plain"))
    ]
    for path in sorted(CLASSIFIERS.rglob("dpk_*.yaml"))
}


def flatten(node, prefix=""):
    flat = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@pytest.fixture
def at_root(monkeypatch):
    """In the repository's root, where the paths in the configs start."""
    monkeypatch.chdir(ROOT)


# ------------------------------------------------------------------ configs/


def test_every_distilling_config_has_a_twin_here():
    distilling = {c for c in CONFIGS if distils(load_config(str(ROOT / c)))}
    assert distilling == set(TWINS)


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_loads(path):
    cfg = load_config(str(ROOT / path))
    assert cfg.VERSION == 2
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST


@pytest.mark.parametrize(("path", "twin"), [(p, t) for p, twins in TWINS.items() for t in twins])
def test_a_distilling_config_differs_from_its_plain_twin_in_the_distillation_alone(path, twin):
    one, other = (flatten(load_config(str(ROOT / p))) for p in (path, twin))
    differing = {key for key in one if one[key] != other[key]}
    assert {key for key in differing if not key.startswith("DISTILL.")} == {
        "MODEL.META_ARCHITECTURE",
        "OUTPUT_DIR",
    }
    assert plain_name(one["MODEL.META_ARCHITECTURE"]) == other["MODEL.META_ARCHITECTURE"]


@pytest.mark.parametrize("path", TWINS)
def test_the_levels_of_a_distilling_config_pair_and_its_method_builds(path, at_root):
    no_files = ["MODEL.TIMM.WEIGHTS", ""]  # which users get for themselves
    cfg = load_config(path, no_files)
    opts = [*cfg.DISTILL.TEACHER.OPTS, *no_files]
    teacher = load_teacher_config(cfg.DISTILL.TEACHER.CONFIG_FILE, opts)
    with torch.device("meta"):  # shapes only, which takes no time
        student_shape, teacher_shape = (build_backbone(c).output_shape() for c in (cfg, teacher))
        levels = pair_levels(student_shape, teacher_shape, cfg.DISTILL.LEVELS)
        distiller = build_distiller(method_arguments(cfg), levels)
    # all, or those that a config names because its teacher has no more
    assert [level.student for level in levels] == (cfg.DISTILL.LEVELS or sorted(student_shape))
    unpaired = {x.stride for n, x in student_shape.items() if n not in [y.student for y in levels]}
    assert not unpaired & {x.stride for x in teacher_shape.values()}
    assert sum(p.numel() for p in distiller.parameters()) > 0
    assert num_classes(teacher) == num_classes(cfg)


@pytest.mark.parametrize("path", [p for p in TWINS if p.count("/") == 1])
def test_the_teachers_of_coco_configs_have_their_weights_in_the_model_zoo(path):
    node = load_config(str(ROOT / path)).DISTILL.TEACHER
    teacher = load_teacher_config(node.CONFIG_FILE)
    url = find_teacher_weights(node.CONFIG_FILE, node.WEIGHTS, teacher)
    assert url.startswith("https://") and url.endswith(".pkl")


@pytest.mark.parametrize(
    ("path", "zoo"),
    [
        ("plain_frcnn_r50.yaml", "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"),
        ("plain_mrcnn_r50.yaml", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"),
        ("plain_retinanet_r50.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
    ],
)
def test_the_students_that_the_model_zoo_has_are_its_own(path, zoo):
    ours = flatten(load_config(str(ROOT / "configs" / path)))
    theirs = flatten(load_teacher_config(zoo))
    assert {key for key in theirs if ours[key] != theirs[key]} == {"OUTPUT_DIR"}


@pytest.mark.parametrize(
    ("path", "epochs", "drops", "num_images"),
    [
        ("cifar100/base.yaml", 240, (150, 180, 210), 50_000),
        ("cifar10/base.yaml", 240, (150, 180, 210), 50_000),
        ("imagenet/base.yaml", 100, (30, 60, 90), 1_281_167),
    ],
)
def test_classifiers_have_the_literatures_schedule_in_steps(path, epochs, drops, num_images):
    solver = load_config(str(CLASSIFIERS / path)).SOLVER
    steps = num_images / solver.IMS_PER_BATCH
    assert pytest.approx(epochs * steps, abs=1) == solver.MAX_ITER
    assert list(solver.STEPS) == pytest.approx([epoch * steps for epoch in drops], abs=1)
    assert solver.WEIGHT_DECAY == solver.WEIGHT_DECAY_NORM


@pytest.mark.parametrize("name", ["plain_resnet34", "plain_resnet50", "plain_mobilenetv1"])
def test_imagenets_networks_have_their_published_size(name):
    cfg = load_config(str(CLASSIFIERS / "imagenet" / f"{name}.yaml"), ["MODEL.DEVICE", "meta"])
    millions = {"plain_resnet34": 21.80, "plain_resnet50": 25.56, "plain_mobilenetv1": 4.23}
    with torch.device("meta"):
        model = build_model(cfg)
    parameters = sum(p.numel() for p in model.parameters())
    assert round(parameters / 1e6, 2) == millions[name]


FROM_TORCHVISION = [  # its twins and heirs are as it is
    path for path in CONFIGS if '\n  WEIGHTS: "torchvision://' in (ROOT / path).read_text()
]


@pytest.mark.parametrize("path", FROM_TORCHVISION)
def test_students_from_torchvisions_weights_see_its_images_and_have_its_network(path):
    cfg = load_config(str(ROOT / path))
    weights = torchvision.models.get_weight(cfg.MODEL.WEIGHTS.removeprefix("torchvision://"))
    transforms = weights.transforms()
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * x for x in transforms.mean])
    assert cfg.MODEL.PIXEL_STD == pytest.approx([255 * x for x in transforms.std])
    with torch.device("meta"):
        bottom_up = build_backbone(cfg).bottom_up
        name = type(weights).__name__.removesuffix("_Weights").lower()
        theirs = torchvision.models.get_model(name).state_dict()
    rename = rename_torchvision if "layer1.0.conv1.weight" in theirs else rename_mobilenetv2
    renamed = {key: x.shape for key, x in rename(theirs).items()}
    counted = "num_batches_tracked"
    ours = {k: x.shape for k, x in bottom_up.state_dict().items() if not k.endswith(counted)}
    assert ours == renamed

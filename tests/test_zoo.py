"""Detectron2's own configs for COCO, as they stand but narrower, are attached to and step once."""

import importlib.util
import math
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import EventStorage

from dpk_det.config.loading import load_config
from dpk_det.data import made_up_batch
from dpk_det.pairing.distil import distil
from dpk_det.pairing.teacher import Teacher

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
FOLDERS = ("Detection", "InstanceSegmentation", "Keypoints", "PanopticSegmentation")
CONFIGS = [
    str(path.relative_to(ZOO))
    for folder in FOLDERS
    for path in sorted((ZOO / f"COCO-{folder}").iterdir())
    if path.suffix in (".yaml", ".py") and not path.name.startswith(("Base", "_"))
]
CONFIGS.append("Misc/semantic_R_50_FPN_1x.yaml")
DEFORMABLE = "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml"
NARROW = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.NORM": "BN",  # frozen statistics belong to weights
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (8,) * 8,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "INPUT.MIN_SIZE_TRAIN": (64,),
}


def of_yaml(name):
    """The model of a config, and a batch for it."""
    cfg = load_config(str(ZOO / name), [str(x) for pair in NARROW.items() for x in pair])
    if cfg.MODEL.RESNETS.NUM_GROUPS > 1:
        cfg.MODEL.RESNETS.NUM_GROUPS = 4
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    return build_model(cfg), made_up_batch(cfg, 2)


def of_python(name):
    """The same of one of Detectron2's newer configs, which need no building function."""
    cfg = LazyConfig.load(str(ZOO / name))
    heads = cfg.model.get("roi_heads", {})
    if "box_head" in heads:
        heads.box_head.fc_dims = [16, 16]
        heads.box_predictor.input_shape = ShapeSpec(channels=16)
    if "keypoint_head" in heads:
        heads.keypoint_head.conv_dims = [8] * 8
    try:
        model = instantiate(cfg.model)
    except ValueError as e:
        if "divisible by num_groups" not in str(e):
            raise
        pytest.skip("this Detectron2 0.6 was installed without the mend of dense heads with GN")
    like = load_config("", ["INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.MASK_ON", "True"])
    like.MODEL.KEYPOINT_ON = "keypoint" in name
    like.MODEL.ROI_HEADS.NUM_CLASSES = 1 if like.MODEL.KEYPOINT_ON else 80
    return model, made_up_batch(like, 2)


def test_the_zoo_is_found():
    assert len(CONFIGS) >= 38
    for word in ("retinanet", "fcos", "rpn_", "fast_rcnn", "mask", "keypoint", "panoptic", "C4"):
        assert any(word in name for name in CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_distils(name, tiny):
    torch.manual_seed(0)
    model, batch = (of_yaml if name.endswith("yaml") else of_python)(name)
    teacher = Teacher(tiny.build("teacher"), "RGB", "BGR")
    plain = {key: x.shape for key, x in model.state_dict().items()}
    distil(model, teacher, {"dpk": {"dim": 16, "heads": 2}})
    levels = [x.stride for x in model.distiller.methods["dpk"].levels]
    maps = {x.stride for x in model.backbone.output_shape().values()}
    assert levels == sorted(maps & {4, 8, 16, 32, 64})

    optimizer = torch.optim.SGD(get_default_optimizer_params(model), lr=1e-6)
    with EventStorage():
        losses = model.train()(batch)
    assert "loss_dpk" in losses and len(losses) > 1
    assert all(math.isfinite(x.item()) for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    kept = {k: x.shape for k, x in model.state_dict().items() if not k.startswith("distiller.")}
    assert kept == plain


def test_deformable_convolution_needs_the_compiled_part():
    if importlib.util.find_spec("detectron2._C"):
        pytest.skip("this Detectron2 has its compiled part")
    # main cannot build it; 0.6 can, but has no gradients on the CPU
    with EventStorage(), pytest.raises((ImportError, NotImplementedError), match="_C|CPU"):
        model, batch = of_yaml(DEFORMABLE)
        sum(model.train()(batch).values()).backward()

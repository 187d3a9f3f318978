"""FCOS from config keys, against Detectron2's class put together by hand and its own config."""

import inspect

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.layers import get_norm
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch import fcos as detectron2_fcos
from detectron2.utils.events import EventStorage

import dpk_det
from dpk_det.data import made_up_batch
from dpk_det.errors import UserError

OPTS = ["MODEL.META_ARCHITECTURE", "FCOS", "MODEL.FCOS.NUM_CLASSES", 2]
OPTS += ["MODEL.FCOS.IN_FEATURES", "['p2', 'p3', 'p4']", "MODEL.FCOS.NUM_CONVS", 2]
VALUES = {
    "CENTER_SAMPLING_RADIUS": ("center_sampling_radius", 2.5),
    "FOCAL_LOSS_ALPHA": ("focal_loss_alpha", 0.4),
    "FOCAL_LOSS_GAMMA": ("focal_loss_gamma", 1.5),
    "SCORE_THRESH_TEST": ("test_score_thresh", 0.01),
    "TOPK_CANDIDATES_TEST": ("test_topk_candidates", 30),
    "NMS_THRESH_TEST": ("test_nms_thresh", 0.3),
}


def test_it_is_detectron2s_own_class_with_what_the_keys_say(tiny, batch):
    keys = [x for key, (_, value) in VALUES.items() for x in (f"MODEL.FCOS.{key}", value)]
    more = ["MODEL.FCOS.NORM", "", "MODEL.FCOS.PRIOR_PROB", 0.2, "TEST.DETECTIONS_PER_IMAGE", 7]
    model = tiny.build("plain", *OPTS, *keys, *more)
    assert type(model) is detectron2_fcos.FCOS

    cfg = tiny.cfg("plain", *OPTS)
    backbone = build_backbone(cfg)
    shapes = [backbone.output_shape()[name] for name in ("p2", "p3", "p4")]
    by_hand = detectron2_fcos.FCOS(
        backbone=backbone,
        head=detectron2_fcos.FCOSHead(
            input_shape=shapes, num_classes=2, conv_dims=[16, 16], prior_prob=0.2
        ),
        head_in_features=["p2", "p3", "p4"],
        num_classes=2,
        max_detections_per_image=7,
        pixel_mean=[120.0, 110.0, 100.0],
        pixel_std=[60.0, 55.0, 50.0],
        **dict(VALUES.values()),
    )
    # what a seed draws differs: the head is another's; but its bias is not drawn
    assert torch.equal(model.head.cls_score.bias, by_hand.head.cls_score.bias)
    with torch.no_grad():
        model.head.bbox_pred.bias.fill_(1.0)  # boxes have a size
    by_hand.load_state_dict(model.state_dict())  # the names are Detectron2's
    with EventStorage():
        losses, expected = model.train()(batch), by_hand.train()(batch)
    assert list(losses) == ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"]
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    with torch.no_grad():
        found, known = model.eval()(batch), by_hand.eval()(batch)
    for a, b in zip(found, known, strict=True):
        assert 0 < len(a["instances"]) <= 7
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, b["instances"].scores)


def test_the_defaults_are_detectron2s():
    cfg = get_cfg()
    dpk_det.add_dpk_config(cfg)
    node = cfg.MODEL.FCOS
    of_class = inspect.signature(detectron2_fcos.FCOS).parameters
    for key, (name, _) in VALUES.items():
        assert node[key] == of_class[name].default, key

    folder = detectron2_fcos.__file__.replace("modeling/meta_arch/fcos.py", "model_zoo/configs")
    theirs = LazyConfig.load(f"{folder}/common/models/fcos.py").model
    assert node.SCORE_THRESH_TEST == theirs.test_score_thresh
    assert node.NMS_THRESH_TEST == theirs.test_nms_thresh
    assert (node.FOCAL_LOSS_ALPHA, node.FOCAL_LOSS_GAMMA) == (0.25, 2.0)
    assert list(theirs.head_in_features) == node.IN_FEATURES
    assert (theirs.num_classes, theirs.head.norm) == (node.NUM_CLASSES, node.NORM)
    assert len(theirs.head.conv_dims) == node.NUM_CONVS
    assert theirs.head.prior_prob == node.PRIOR_PROB
    assert cfg.TEST.DETECTIONS_PER_IMAGE == of_class["max_detections_per_image"].default

    # without norm, which 0.6 cannot build, the head of the very config
    theirs.head.norm = ""
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, node.NORM = "FCOS", "cpu", ""
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    ours, reference = build_model(cfg).head.state_dict(), instantiate(theirs.head).state_dict()
    assert {k: x.shape for k, x in ours.items()} == {k: x.shape for k, x in reference.items()}


def test_group_norm_is_detectron2s_where_it_has_one_and_fits_narrow_heads(tiny):
    convolutions = tiny.build("plain", *OPTS).head.cls_subnet
    assert convolutions[1].num_groups == 16  # of 16 channels
    wide = tiny.build("plain", *OPTS, "MODEL.FPN.OUT_CHANNELS", 64).head.bbox_subnet[1]
    assert wide.num_groups == get_norm("GN", 64).num_groups == 32
    shared = tiny.build("plain", *OPTS, "MODEL.FCOS.NORM", "FrozenBN").head.cls_subnet[1]
    assert type(shared) is type(get_norm("FrozenBN", 16))


def test_it_distils_with_features_and_logits(tiny, batch, tmp_path):
    torch.save({"model": tiny.build("plain", *OPTS, seed=5).state_dict()}, tmp_path / "fcos.pth")
    teacher = ["DISTILL.TEACHER.CONFIG_FILE", tiny.plain]
    teacher += ["DISTILL.TEACHER.WEIGHTS", tmp_path / "fcos.pth"]
    teacher += ["DISTILL.TEACHER.OPTS", OPTS]
    methods = ["DISTILL.METHODS", "['dpk', 'kd', 'dkd', 'fgd']"]
    own = [*OPTS, "MODEL.META_ARCHITECTURE", "DistillFCOS"]
    model = tiny.build("dpk", *own, *teacher, *methods)
    assert type(model) is detectron2_fcos.FCOS
    with EventStorage():
        losses = model.train()(batch)
    assert {"loss_dpk", "loss_kd_dense", "loss_dkd_dense"} <= set(losses)
    assert any(name.startswith("loss_fgd") for name in losses)
    losses["loss_kd_dense"].backward()
    assert model.head.cls_score.weight.grad.any()


def test_made_up_images_have_its_classes(tiny):
    cfg = tiny.cfg("plain", *OPTS)
    classes = torch.cat([x["instances"].gt_classes for x in made_up_batch(cfg, 8)])
    assert set(classes.tolist()) == {0, 1}


def test_maps_that_the_backbone_lacks_are_an_error(tiny):
    with pytest.raises(UserError, match=r"names p5, p6, which the .* does not give: ch"):
        tiny.build("plain", *OPTS, "MODEL.FCOS.IN_FEATURES", "['p3', 'p5', 'p6']")


def test_maps_of_different_width_are_an_error(tiny):
    resnet = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50]
    resnet += ["MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.RES2_OUT_CHANNELS", 8]
    with pytest.raises(UserError, match=r"has maps of \[16, 32\] channels, which no one head"):
        tiny.build("plain", *OPTS, *resnet, "MODEL.FCOS.IN_FEATURES", "['res3', 'res4']")

"""Every kind of student under every kind of teacher: two steps, an evaluation, and plain losses.

Networks are Detectron2's own, as its base configs describe them, at tiny widths. The teachers
differ from the students in what may differ: width, channel order, pixel statistics, padding
divisor, levels.
"""

import math
from functools import cache
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

import dpk_det
from dpk_det.architectures import plain_architecture
from dpk_det.config.loading import load_config
from dpk_det.data import made_up_batch
from dpk_det.engine import check
from dpk_det.engine.trainer import DistillTrainer


@META_ARCH_REGISTRY.register()
class CentreFinder(nn.Module):
    """A meta-architecture as a user may have it: one score a cell, of nothing else in common."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.score = nn.Conv2d(self.backbone.output_shape()["p3"].channels, 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1))

    def forward(self, batched_inputs):
        images = [(x["image"] - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        images = ImageList.from_tensors(images, self.backbone.size_divisibility)
        scores = self.score(self.backbone(images.tensor)["p3"])[:, 0]
        if not self.training:
            return [
                {"instances": self.best(x, size)}
                for x, size in zip(scores, images.image_sizes, strict=True)
            ]
        wanted = torch.zeros_like(scores)
        for target, x in zip(wanted, batched_inputs, strict=True):
            columns, rows = (x["instances"].gt_boxes.get_centers() / 8).long().T
            target[rows.clamp(max=target.shape[0] - 1), columns.clamp(max=target.shape[1] - 1)] = 1
        return {"loss_score": nn.functional.binary_cross_entropy_with_logits(scores, wanted)}

    def best(self, scores, size):
        row, column = divmod(scores.argmax().item(), scores.shape[1])
        box = torch.tensor([[column, row, column + 1, row + 1]]) * 8.0
        return Instances(
            size, pred_boxes=Boxes(box), scores=scores.max()[None], pred_classes=torch.zeros(1)
        )


dpk_det.register_distilled("CentreFinder")

BASES = Path(detectron2.__file__).parent / "model_zoo" / "configs"
COMMON = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 70,
    "SOLVER.BASE_LR": 1e-4,
    "DISTILL.DPK.DIM": 16,
    "DISTILL.DPK.HEADS": 2,
    "DISTILL.REVIEWKD.MID": 8,
}
RCNN = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 4,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}
RETINANET = {
    "MODEL.RETINANET.NUM_CLASSES": 3,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}
# kind: distilling architecture, Detectron2's base config, overrides
KINDS = {
    "faster": ("DistillRCNN", "Base-RCNN-FPN", RCNN),
    "mask": ("DistillRCNN", "Base-RCNN-FPN", {**RCNN, "MODEL.MASK_ON": True}),
    "keypoint": (
        "DistillRCNN",
        "COCO-Keypoints/Base-Keypoint-RCNN-FPN",
        {
            **RCNN,
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 3,
            "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (8,),
            "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 4,
        },
    ),
    "cascade": ("DistillRCNN", "Misc/cascade_mask_rcnn_R_50_FPN_1x", RCNN),
    "panoptic": (
        "DistillPanopticFPN",
        "COCO-PanopticSegmentation/Base-Panoptic-FPN",
        {
            **RCNN,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
            "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,  # Detectron2's GN has 32 groups
        },
    ),
    "retinanet": ("DistillRetinaNet", "Base-RetinaNet", RETINANET),
    "fcos": (
        "DistillFCOS",
        "Base-RetinaNet",
        {
            "MODEL.FCOS.NUM_CLASSES": 3,
            "MODEL.FCOS.NUM_CONVS": 1,
            "MODEL.FCOS.SCORE_THRESH_TEST": 0.0,
            "TEST.DETECTIONS_PER_IMAGE": 5,
        },
    ),
    "user": ("DistillCentreFinder", "Base-RCNN-FPN", {}),
}
# What teachers have otherwise than the student of their kind. The cascade's gives three levels and
# pads to multiples of 16, not 32: of an image of 70 pixels its maps are 1 to 4 cells narrower.
TEACHERS = {
    "faster": {"MODEL.FPN.OUT_CHANNELS": 24, "INPUT.FORMAT": "RGB"},
    "cascade": {
        "MODEL.BACKBONE.NAME": "build_small_resnet_fpn_backbone",
        "MODEL.SMALL_RESNET.WIDTHS": [4, 8, 12],
        "MODEL.SMALL_RESNET.BLOCKS": [1, 1, 1],
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4"],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128]],
    },
    "retinanet": {"MODEL.PIXEL_MEAN": [90.0, 100.0, 110.0], "MODEL.PIXEL_STD": [40.0, 50.0, 60.0]},
    "fcos": {"MODEL.RESNETS.RES2_OUT_CHANNELS": 16, "MODEL.RESNETS.WIDTH_PER_GROUP": 8},
}
P2_TO_P6, P3_TO_P7 = ({f"p{i}" for i in range(a, a + 5)} for a in (2, 3))
LEVELS = {kind: P3_TO_P7 if kind in ("retinanet", "fcos") else P2_TO_P6 for kind in KINDS}
LEVELS_OF_TEACHERS = {**LEVELS, "cascade": {"p2", "p3", "p4"}}


def config(kind, **opts):
    """The config of a distilling student of a kind, which says nothing of a teacher yet."""
    name, base, own = KINDS[kind]
    changes = {**COMMON, **own, "MODEL.META_ARCHITECTURE": name, **opts}
    flat = [str(x) for pair in changes.items() for x in pair]
    return load_config(str(BASES / f"{base}.yaml"), flat)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """``teachers(kind)`` gives the config file and the weights of a teacher."""
    folder = tmp_path_factory.mktemp("teachers")

    @cache
    def make(kind):
        cfg = plain_architecture(config(kind, **TEACHERS.get(kind, {})))
        (folder / f"{kind}.yaml").write_text(cfg.dump())
        torch.manual_seed(7)
        torch.save({"model": build_model(cfg).state_dict()}, folder / f"{kind}.pth")
        return str(folder / f"{kind}.yaml"), str(folder / f"{kind}.pth")

    return make


def images(cfg):
    """Two images of different size, with all that the kind needs."""
    smaller = cfg.clone()
    smaller.INPUT.MIN_SIZE_TRAIN = (48,)
    torch.manual_seed(0)
    return made_up_batch(cfg, 1) + made_up_batch(smaller, 1)


def losses_of_a_step(model, batch):
    torch.manual_seed(3)
    with EventStorage():
        return model.train()(batch)


@cache
def plain_losses(kind):
    cfg = plain_architecture(config(kind))
    torch.manual_seed(1)
    return {k: x.detach() for k, x in losses_of_a_step(build_model(cfg), images(cfg)).items()}


def evaluate(model, batch):
    """All tensors that the evaluation of a batch gives, and their names."""
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model.eval()(batch)
    found = {}
    for i, output in enumerate(outputs):
        for name, value in output["instances"].get_fields().items():
            found[f"{i} {name}"] = value.tensor if isinstance(value, Boxes) else value
        found |= {f"{i} {k}": output[k] for k in ("sem_seg",) if k in output}
        if "panoptic_seg" in output:
            found[f"{i} panoptic"] = output["panoptic_seg"][0]
    return found


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("teacher", KINDS)
def test_a_pair(student, teacher, teachers):
    file, weights = teachers(teacher)
    cfg = config(
        student, **{"DISTILL.TEACHER.CONFIG_FILE": file, "DISTILL.TEACHER.WEIGHTS": weights}
    )
    if student == teacher and student != "user":  # has heads to compare, too
        cfg.DISTILL.METHODS = ["dpk", "fgd", "kd", "dkd"]
    batch = images(cfg)
    torch.manual_seed(1)
    model = build_model(cfg)
    levels = {(x.student, x.teacher) for x in model.distiller.methods["dpk"].levels}
    shared = LEVELS[student] & LEVELS_OF_TEACHERS[teacher]
    assert levels == {(name, name) for name in shared}

    optimizer = build_optimizer(cfg, model)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for step in range(2):
        losses = losses_of_a_step(model, batch)
        if step == 0:
            plain = plain_losses(student)
            assert all(torch.equal(losses[name], plain[name]) for name in plain)
            added = set(losses) - set(plain)
            assert "loss_dpk" in added
            if len(cfg.DISTILL.METHODS) > 1:
                assert any("loss_kd" in x for x in added) and any("loss_fgd" in x for x in added)
        assert all(math.isfinite(x.item()) for x in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for name, p in model.backbone.bottom_up.named_parameters():
        assert p.grad is not None and not torch.equal(p, before[f"backbone.bottom_up.{name}"]), name

    plain_model = build_model(plain_architecture(cfg))
    assert type(model) is type(plain_model)
    state = {k: x for k, x in model.state_dict().items() if not k.startswith("distiller.")}
    plain_model.load_state_dict(state)  # every name, and no other
    found, expected = evaluate(model, batch), evaluate(plain_model, batch)
    assert found.keys() == expected.keys() and any(len(x) for x in found.values())
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("student", KINDS)
def test_a_job_of_each_kind_can_be_checked(student, teachers, monkeypatch):
    # of real data each kind would need its own
    monkeypatch.setattr(DistillTrainer, "build_train_loader", lambda cfg: [made_up_batch(cfg, 2)])
    file, weights = teachers("faster")
    opts = {"DISTILL.TEACHER.CONFIG_FILE": file, "DISTILL.TEACHER.WEIGHTS": weights}
    cfg = config(student, **opts, **{"DATASETS.TRAIN": (), "DATASETS.TEST": ()})
    report = check(cfg)
    assert report.endswith("The job is ready to run.")
    assert all(f"{name} " in report for name in ("loss_dpk", *plain_losses(student)))

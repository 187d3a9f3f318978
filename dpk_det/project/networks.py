"""Teachers and students by name, as keys of a config."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from omegaconf import DictConfig

from dpk_det.architectures import distilling_names, plain_architecture
from dpk_det.config.loading import load_config
from dpk_det.config.shipped import find_config
from dpk_det.data.class_names import teacher_classes
from dpk_det.data.model_classes import class_count_key, num_classes
from dpk_det.errors import UserError, nearest
from dpk_det.pairing.teacher import ZOO_EXAMPLE, find_teacher_weights, load_teacher_config

Keys = dict[str, Any]
"""Nested keys of a config."""

RESNETS = {f"resnet{depth}": depth for depth in (18, 34, 50, 101, 152)}
"""Detectron2's own, from torchvision's ImageNet weights; other names are timm's."""

BASE = "configs/base_rcnn_fpn.yaml"
"""Config of the detector that a teacher without a config of its own becomes."""


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher.

    Attributes:
        base: what a config names under ``_BASE_`` to get the teacher's detector, as seen from the
            working directory; or a name of the model zoo's or of this project's.
        cfg: the config. keys: to set on top of the base. weights: it starts or teaches with.
        is_file: whether the base is a file of the user's.
        teaches: whether it knows the data's classes, so that it need not be trained.
    """

    base: str
    cfg: CfgNode
    keys: Keys = field(default_factory=dict)
    weights: str = ""
    is_file: bool = False
    teaches: bool = False


def choose_teacher(name: str, weights: str, classes: list[str]) -> TeacherChoice:
    """Find a teacher.

    Args:
        name: of the model zoo's configs, path of a config, or a network as for a student.
        weights: path or URL; "": the zoo's, those that training with the config has left, or for a
            network ImageNet's. classes: of the data.

    Raises:
        UserError: there is no such teacher, or it is none that distils, without an FPN.
    """
    if not name.endswith((".yaml", ".yml", ".py")):
        cfg = load_config(BASE)
        return TeacherChoice(BASE, cfg, backbone_keys(name, weights, cfg), "")
    cfg = load_teacher_config(name)
    if isinstance(cfg, DictConfig):
        raise UserError(
            f"The teacher {name} is a LazyConfig, from which no YAML can be derived: see "
            "examples/lazyconfig, or name a YAML config."
        )
    is_file = os.path.isfile(find_config(name))
    try:
        weights = find_teacher_weights(name, weights, cfg)
    except UserError:
        weights = cfg.MODEL.WEIGHTS  # it was never trained, and starts from these
        knows = False
    else:
        told = teacher_classes(cfg)
        knows = num_classes(cfg) == len(classes) and (told is None or told[1] == classes)
    cfg = plain_architecture(cfg)
    _check(name, cfg)
    return TeacherChoice(name, cfg, {}, weights, is_file, knows)


def _check(name: str, cfg: CfgNode) -> None:
    plain = cfg.MODEL.META_ARCHITECTURE
    wrong = ""
    if class_count_key(cfg) in (None, "CLASSIFIER") or plain not in distilling_names().values():
        wrong = f"is of the architecture {plain}"
    elif "fpn" not in cfg.MODEL.BACKBONE.NAME.lower():
        wrong = "has no FPN"
    elif cfg.MODEL.KEYPOINT_ON:
        wrong = "finds keypoints"
    if wrong:
        raise UserError(
            f"The teacher {name} {wrong}, for which init writes no files: take a detector with an "
            f"FPN such as {ZOO_EXAMPLE}, or write the configs by hand (docs/start.md)."
        )


def backbone_keys(name: str, weights: str, like: CfgNode) -> Keys:
    """Keys that put a network below the FPN of a detector, and start it from ImageNet's weights.

    Args:
        name: one of :data:`RESNETS`, or timm's. weights: a file for it; "": those that torchvision
            or timm has. like: config of the detector whose network it replaces.

    Raises:
        UserError: neither is there a network of that name.
    """
    if name in RESNETS:
        return _resnet(RESNETS[name], weights, like)
    import timm

    if not timm.is_model(name):
        near = nearest(name, [*RESNETS, *timm.list_models()])
        hint = f"did you mean {near}?" if near else f"take one of {', '.join(RESNETS)}, or timm's."
        raise UserError(f"There is no network {name}: {hint}")
    return _timm(name, weights, like)


_SEEN_BY_TORCHVISION = {  # RGB, of ImageNet
    "PIXEL_MEAN": [123.675, 116.28, 103.53],
    "PIXEL_STD": [58.395, 57.12, 57.375],
}


def _resnet(depth: int, weights: str, like: CfgNode) -> Keys:
    usual, there = get_cfg().MODEL.RESNETS, like.MODEL.RESNETS
    kept = ("OUT_FEATURES", "NORM")
    resnets: Keys = {"DEPTH": depth, "STRIDE_IN_1X1": False}
    if depth < 50:
        resnets["RES2_OUT_CHANNELS"] = 64
    for key, value in usual.items():  # what makes the teacher a ResNeXt, say
        if key not in (*resnets, *kept) and there[key] != value:
            resnets[key] = value
    model: Keys = {
        "WEIGHTS": weights or f"torchvision://ResNet{depth}_Weights.IMAGENET1K_V1",
        **_SEEN_BY_TORCHVISION,
        "RESNETS": resnets,
    }
    if "resnet_fpn" not in like.MODEL.BACKBONE.NAME or "small" in like.MODEL.BACKBONE.NAME:
        retina = "retinanet_" if _has_p6p7(like) else ""
        model["BACKBONE"] = {"NAME": f"build_{retina}resnet_fpn_backbone"}
    return {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}


def _timm(name: str, weights: str, like: CfgNode) -> Keys:
    import timm

    about = timm.get_pretrained_cfg(name)
    if about is None:
        raise UserError(f"timm has no ImageNet weights of {name}: take another network.")
    model: Keys = {
        "WEIGHTS": "",
        "PIXEL_MEAN": [round(255 * x, 3) for x in about.mean],
        "PIXEL_STD": [round(255 * x, 3) for x in about.std],
        "BACKBONE": {"NAME": "build_timm_fpn_backbone", "FREEZE_AT": 0},
        "TIMM": {
            "NAME": name,
            **({"WEIGHTS": weights} if weights else {"PRETRAINED": True}),
            "NORM": "FrozenBN",
        },
    }
    if _has_p6p7(like):
        model["FPN"] = {"TOP_BLOCK": "p6p7"}
    return {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}


def _has_p6p7(cfg: CfgNode) -> bool:
    return "retinanet" in cfg.MODEL.BACKBONE.NAME or cfg.MODEL.FPN.TOP_BLOCK == "p6p7"


def base_from(teacher: TeacherChoice, folder: Path) -> str:
    """What a file in a folder has to write under ``_BASE_`` for the teacher's detector."""
    return os.path.relpath(teacher.base, folder) if teacher.is_file else teacher.base

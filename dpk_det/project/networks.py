"""Finds teachers and students by name, and gives the config keys that build them."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from omegaconf import DictConfig

from dpk_det.architectures import distilling_names, plain_architecture
from dpk_det.config.loading import load_config
from dpk_det.data.class_names import teacher_classes
from dpk_det.data.model_classes import class_count_key, num_classes
from dpk_det.errors import UserError, nearest
from dpk_det.pairing.teacher import ZOO_EXAMPLE, find_teacher_weights, load_teacher_config

Keys = dict[str, Any]
"""Nested keys of a config."""

RESNETS = {f"resnet{depth}": depth for depth in (18, 34, 50, 101, 152)}
"""Name -> depth of Detectron2's ResNets, for torchvision's weights. Other names are timm's."""

BASE = "configs/base_rcnn_fpn.yaml"
"""Config of the detector for a teacher that has no config of its own."""


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher.

    Attributes:
        base: the ``_BASE_`` that gives a config the teacher's detector: a path from the working
            directory, or the name of a config of the model zoo or of this project.
        cfg: the teacher's config.
        keys: keys to set on top of the base.
        weights: weights that it starts or teaches with.
        is_file: whether the base is a file of the user.
        teaches: whether it knows the data's classes and needs no training.
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
        name: name of a model zoo config, path of a config, or a network as for a student.
        weights: path or URL; "": the zoo's, those that training with the config has left, or for a
            network ImageNet's.
        classes: class names of the data.

    Raises:
        UserError: if there is no such teacher, its architecture does not distil, it has no FPN, or
            it finds keypoints or segments the background.
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
    is_file = os.path.isfile(os.path.expanduser(name))
    given = bool(weights)
    try:
        weights = find_teacher_weights(name, weights, cfg)
    except UserError:
        weights = cfg.MODEL.WEIGHTS  # it is not trained yet, and starts from these
        knows = False
    else:
        told = teacher_classes(cfg)
        knows = num_classes(cfg) == len(classes) and (told is None or told[1] == classes)
    cfg = plain_architecture(cfg)
    _check(name, cfg)
    base = os.path.expanduser(name) if is_file else name
    if knows and not (given or is_file):
        weights = ""  # those of the model zoo are found by the config's name
    return TeacherChoice(base, cfg, {}, weights, is_file, knows)


def _check(name: str, cfg: CfgNode) -> None:
    plain = cfg.MODEL.META_ARCHITECTURE
    wrong = ""
    if class_count_key(cfg) in (None, "CLASSIFIER") or plain not in distilling_names().values():
        wrong = f"is of the architecture {plain}"
    elif "fpn" not in cfg.MODEL.BACKBONE.NAME.lower():
        wrong = "has no FPN"
    elif cfg.MODEL.KEYPOINT_ON:
        wrong = "finds keypoints"
    elif plain == "PanopticFPN":
        wrong = "segments the background too"
    if wrong:
        raise UserError(
            f"The teacher {name} {wrong}, for which init writes no files: take a detector with an "
            f"FPN such as {ZOO_EXAMPLE}, or write the configs by hand (docs/start.md)."
        )


def backbone_keys(name: str, weights: str, like: CfgNode) -> Keys:
    """Return keys that put a network with ImageNet's weights below the FPN of a detector.

    Args:
        name: a name in :data:`RESNETS` or a name of timm.
        weights: file of its weights; "": those of torchvision or timm.
        like: config of the detector whose network it replaces.

    Raises:
        UserError: if no network has that name, or timm has no weights for it.
    """
    if name in RESNETS:
        return _resnet(RESNETS[name], weights, like)
    import timm

    if not timm.is_model(name):
        near = nearest(name, [*RESNETS, *timm.list_models()])
        hint = f"did you mean {near}?" if near else f"take one of {', '.join(RESNETS)}, or timm's."
        raise UserError(f"There is no network {name}: {hint}")
    return _timm(name, weights, like)


_SEEN_BY_TORCHVISION = {  # RGB statistics of ImageNet
    "PIXEL_MEAN": [123.675, 116.28, 103.53],
    "PIXEL_STD": [58.395, 57.12, 57.375],
}


def _resnet(depth: int, weights: str, like: CfgNode) -> Keys:
    usual, there = get_cfg().MODEL.RESNETS, like.MODEL.RESNETS
    kept = ("OUT_FEATURES", "NORM")
    resnets: Keys = {"DEPTH": depth, "STRIDE_IN_1X1": False}
    if depth < 50:
        resnets["RES2_OUT_CHANNELS"] = 64
    for key, value in usual.items():  # resets, for example, a ResNeXt's keys
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
    """Return the ``_BASE_`` that gives a file in a folder the teacher's detector."""
    return os.path.relpath(teacher.base, folder) if teacher.is_file else teacher.base

"""What a training starts from: weights given, and the teacher's neck and heads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from dpk_det.architectures import distils
from dpk_det.checkpoint.loading import load_backbone_weights, load_weights
from dpk_det.data import check_teachers_classes
from dpk_det.pairing.inherit import inherit_weights
from dpk_det.pairing.teacher import (
    build_teacher,
    build_untrained,
    find_teacher_weights,
    load_teacher_config,
)


@dataclass(frozen=True)
class Start:
    """What was found.

    Attributes:
        weights, backbone: as :func:`~dpk_det.checkpoint.loading.load_weights` returns them, of
            ``MODEL.WEIGHTS`` and ``MODEL.BACKBONE_WEIGHTS``. inherited: names of weights.
    """

    weights: Any
    backbone: Any
    inherited: list[str]


def has_teacher(cfg: CfgNode) -> bool:
    """Whether a training takes anything from a teacher."""
    return distils(cfg) or cfg.DISTILL.INHERIT


def teacher_weights(cfg: CfgNode) -> str:
    """Path or address of the weights of a config's teacher.

    Raises:
        UserError: when it has no config, or none are given and there are none to be found.
    """
    node = cfg.DISTILL.TEACHER
    teacher_cfg = load_teacher_config(node.CONFIG_FILE, node.OPTS)
    return find_teacher_weights(node.CONFIG_FILE, node.WEIGHTS, teacher_cfg)


def make_teacher_weights(cfg: CfgNode, path: str | Path) -> None:
    """Write random weights of a config's teacher, for one that is not trained yet, and name them.

    Args:
        cfg: changed in place: its teacher's weights are ``path``.
    """
    node = cfg.DISTILL.TEACHER
    model, _ = build_untrained(load_teacher_config(node.CONFIG_FILE, node.OPTS))
    torch.save({"model": model.state_dict()}, path)
    node.WEIGHTS = str(path)


def load_start(model: nn.Module, cfg: CfgNode) -> Start:
    """Give a model, plain or distilling, the weights that its training starts from.

    Raises:
        UserError: when weights are not found or of another backbone, nothing of the
            teacher's fits, or the teacher numbers its classes in another way and the student learns
            from it by number.
    """
    bond = getattr(model, "distillation", None)
    if cfg.DISTILL.INHERIT or (bond and bond.distiller.heads):
        check_teachers_classes(cfg)
    weights = load_weights(model, cfg.MODEL.WEIGHTS)
    backbone = load_backbone_weights(model, cfg.MODEL.BACKBONE_WEIGHTS)
    inherited: list[str] = []
    if cfg.DISTILL.INHERIT:
        teacher = bond.teacher if bond else build_teacher(cfg)
        inherited, _ = inherit_weights(model, teacher.model)
    return Start(weights, backbone, inherited)

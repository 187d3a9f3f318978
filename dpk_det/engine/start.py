"""The start of a training: the given weights, and the teacher's neck and heads."""

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
    """The weights that were found for a start.

    Attributes:
        weights: the result of :func:`~dpk_det.checkpoint.loading.load_weights`, for
            ``MODEL.WEIGHTS``.
        backbone: the same for ``MODEL.BACKBONE_WEIGHTS``.
        inherited: the names of the weights that come from the teacher.
    """

    weights: Any
    backbone: Any
    inherited: list[str]


def has_teacher(cfg: CfgNode) -> bool:
    """Whether a training uses a teacher."""
    return distils(cfg) or cfg.DISTILL.INHERIT


def teacher_weights(cfg: CfgNode) -> str:
    """Return the path or URL of the weights of a config's teacher.

    Raises:
        UserError: when the teacher has no config, or no weights are given and none are found.
    """
    node = cfg.DISTILL.TEACHER
    teacher_cfg = load_teacher_config(node.CONFIG_FILE, node.OPTS)
    return find_teacher_weights(node.CONFIG_FILE, node.WEIGHTS, teacher_cfg)


def make_teacher_weights(cfg: CfgNode, path: str | Path) -> None:
    """Write random weights for a teacher that is not trained yet, and name them in its config.

    Args:
        cfg: changed in place; its teacher's weights become ``path``.
        path: the file to write.
    """
    node = cfg.DISTILL.TEACHER
    model, _ = build_untrained(load_teacher_config(node.CONFIG_FILE, node.OPTS))
    torch.save({"model": model.state_dict()}, path)
    node.WEIGHTS = str(path)


def load_start(model: nn.Module, cfg: CfgNode) -> Start:
    """Load the weights that a plain or distilling model starts its training from.

    Raises:
        UserError: when weights are not found or belong to another backbone, when no weight of the
            teacher fits, or when the student learns from the teacher by class number but the
            teacher's classes have other numbers.
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

"""What a training starts from: weights given, and the teacher's neck and heads."""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from dpk_det.checkpoint import load_backbone_weights, load_weights
from dpk_det.data import check_teachers_classes
from dpk_det.errors import UserError
from dpk_det.teacher import build_teacher, inherit_weights


@dataclass(frozen=True)
class Start:
    """What was found.

    Attributes:
        weights, backbone: as :func:`~dpk_det.checkpoint.load_weights` returns them, of
            ``MODEL.WEIGHTS`` and ``MODEL.BACKBONE_WEIGHTS``. inherited: names of weights.
    """

    weights: Any
    backbone: Any
    inherited: list[str]


def load_start(model: nn.Module, cfg: CfgNode) -> Start:
    """Give a model, plain or distilling, the weights that its training starts from.

    Raises:
        UserError: when weights are not found, most of the backbone's do not fit, nothing of the
            teacher's fits, or the teacher numbers its classes in another way and the student learns
            from it by number.
    """
    bond = getattr(model, "distillation", None)
    if cfg.DISTILL.INHERIT or (bond and bond.distiller.heads):
        check_teachers_classes(cfg)
    weights = load_weights(model, cfg.MODEL.WEIGHTS)
    if weights:
        _require_fit(model, weights, cfg.MODEL.WEIGHTS)
    backbone = load_backbone_weights(model, cfg.MODEL.BACKBONE_WEIGHTS)
    return Start(weights, backbone, _inherit(model, cfg) if cfg.DISTILL.INHERIT else [])


def _require_fit(model: nn.Module, found: Any, path: str) -> None:
    part = "backbone.bottom_up." if hasattr(model.backbone, "bottom_up") else "backbone."
    names = {name for name in model.state_dict() if name.startswith(part)}
    shapes = {name for name, *_ in found.incorrect_shapes}
    misfits = sorted(names & {*found.missing_keys, *shapes})
    if 2 * len(misfits) > len(names):
        raise UserError(
            f"The weights at {path} are of another backbone: {len(misfits)} of the {len(names)} of "
            f"{part.rstrip('.')} are not there or have another shape, {misfits[0]} first; give "
            'MODEL.WEIGHTS those of this architecture, or "" to start at random.'
        )


def _inherit(model: nn.Module, cfg: CfgNode) -> list[str]:
    bond = getattr(model, "distillation", None)
    taken, _ = inherit_weights(model, (bond.teacher if bond else build_teacher(cfg)).model)
    if not taken:
        raise UserError(
            "DISTILL.INHERIT takes nothing, because no layer of the teacher's neck and heads has "
            "the name and shape of one of the student's: set it to False, or choose a student with "
            "the neck and heads of its teacher."
        )
    return taken

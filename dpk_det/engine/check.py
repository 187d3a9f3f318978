"""Tries a job before it is queued: everything is built, looked at, and stepped once."""

import math

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from dpk_det.checkpoint import load_backbone_weights, load_weights
from dpk_det.data import classifies, dataset_sizes, made_up_batch
from dpk_det.errors import UserError

from .trainer import DistillTrainer, count_parameters, inherit


def check(cfg: CfgNode) -> str:
    """Build student, teacher and distiller as training would and take one step on made-up images.

    Args:
        cfg: of the training. ``SOLVER.IMS_PER_BATCH`` images are tried, of a detector two at most
            and of a classifier eight.

    Returns:
        A report: level pairs, parameter counts, which weights were found, dataset sizes, losses.

    Raises:
        UserError: for whatever training would stumble over, a loss that is not finite included.
    """
    model = build_model(cfg)
    found = load_weights(model, cfg.MODEL.WEIGHTS)
    backbone_found = load_backbone_weights(model, cfg.MODEL.BACKBONE_WEIGHTS)
    if cfg.DISTILL.INHERIT:
        inherit(model, cfg)
    bond = getattr(model, "distillation", None)

    parts = {"student": model}
    if bond:
        parts = {"student": model, "teacher": bond.teacher.model, "distiller": bond.distiller}
    counts = {name: count_parameters(part) for name, part in parts.items()}
    counts["student"] -= counts.get("distiller", 0)

    num_images = max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1)
    try:
        losses = _step(cfg, model, min(num_images, 8 if classifies(cfg) else 2))
    except FloatingPointError as e:
        raise UserError(
            f"The first step on made-up images failed ({' '.join(str(e).split())}): check the "
            "weights and INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD."
        ) from e
    sections = [
        ("parameters", tabulate(counts.items(), intfmt=",")),
        ("weights", _describe_weights(cfg, model, found, backbone_found, bond is not None)),
        ("images", tabulate(dataset_sizes(cfg).items(), intfmt=",")),
        ("losses of one step", tabulate(losses.items(), floatfmt=".4f")),
    ]
    if bond:
        levels = {level for m in bond.distiller.methods.values() for level in m.levels}
        rows = [
            (x.student, x.student_channels, x.teacher, x.teacher_channels, x.stride)
            for x in sorted(levels, key=lambda level: level.stride)
        ]
        headers = ["student", "channels", "teacher", "channels", "stride"]
        sections.insert(0, ("level pairs", tabulate(rows, headers)))
    body = "\n\n".join(f"{title}\n{text}" for title, text in sections)
    return f"{body}\n\nThe job is ready to run."


def _describe_weights(cfg: CfgNode, model, found, backbone_found, has_teacher: bool) -> str:
    lines = []
    if found is None:
        lines.append("student: none given (MODEL.WEIGHTS is empty), starts at random")
    else:
        names = [name for name in model.state_dict() if not name.startswith("distiller.")]
        missing = {*found.missing_keys, *(name for name, *_ in found.incorrect_shapes)}
        num_found = len([name for name in names if name not in missing])
        lines.append(f"student: {num_found} of {len(names)} found in {cfg.MODEL.WEIGHTS}")
        lines += [f"  of another shape there: {name}" for name, *_ in found.incorrect_shapes]
    if backbone_found:
        missing = ", ".join(backbone_found.missing_keys) or "none"
        lines.append(f"backbone: from {cfg.MODEL.BACKBONE_WEIGHTS}; not found there: {missing}")
    if has_teacher:
        lines.append("teacher: all found")  # else there had been an error
    return "\n".join(lines)


def _step(cfg: CfgNode, model, num_images: int) -> dict[str, float]:
    optimizer = DistillTrainer.build_optimizer(cfg, model)
    model.train()
    amp = cfg.SOLVER.AMP.ENABLED  # never without a GPU
    with EventStorage(), torch.autocast(cfg.MODEL.DEVICE.partition(":")[0], enabled=amp):
        losses = model(made_up_batch(cfg, num_images))
    sum(losses.values()).backward()
    optimizer.step()
    values = {name: loss.item() for name, loss in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
    return values

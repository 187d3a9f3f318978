"""Inheriting: the student's neck and heads start from the teacher's weights (Kang et al. 2021)."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dpk_det.errors import UserError
from dpk_det.news import tell


@torch.no_grad()
def inherit_weights(student: nn.Module, teacher: nn.Module) -> tuple[list[str], list[str]]:
    """Start the student's neck, proposal generator and heads from the teacher's weights.

    The inheriting strategy of Kang et al. (NeurIPS 2021). Whatever is no part of the backbone's
    bottom-up network is copied where names and shapes match, whole layers at a time: a bias is no
    use without its weight. So it goes between detectors of different kinds too. A sequence of
    layers that are but numbered (a RetinaNet's ``cls_subnet``) counts as one layer: in another
    sequence the same number is another place. Pixel mean and deviation stay, each network keeps its
    own. Which were taken is logged.

    Args:
        student: gets the weights in place. teacher: gives them.

    Returns:
        The names that were taken, and those of the student's that the teacher could not give.

    Raises:
        UserError: when there is nothing to take.
    """
    own = "backbone.bottom_up." if hasattr(student.backbone, "bottom_up") else "backbone."
    wanted = {
        name: value
        for name, value in student.state_dict().items()
        if not name.startswith((own, "distiller.", "pixel_"))
    }
    given = teacher.state_dict()
    layers, theirs = _layers(student, wanted), _layers(teacher, given)
    taken = [
        name
        for layer, weights in layers.items()
        if weights == theirs.get(layer)
        for name in weights
    ]
    if not taken:
        raise UserError(
            "DISTILL.INHERIT takes nothing, because no layer of the teacher's neck and heads has "
            "the name and shape of one of the student's: set it to False, or choose a student with "
            "the neck and heads of its teacher."
        )
    for name in taken:
        wanted[name].copy_(given[name])
    left = [name for name in wanted if name not in taken]
    tell(
        "Inherited %d weights of the teacher: %s. Not inherited, of another name or shape: %s.",
        len(taken),
        ", ".join(taken) or "none",
        ", ".join(left) or "none",
    )
    return taken, left


def _layers(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
    """Layer to name and shape of each of its weights."""
    sequences = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential)
        and all(child.isdigit() for child, _ in module.named_children())
    }
    layers: dict[str, dict[str, torch.Size]] = {}
    for name, value in state.items():
        # Detectron2's convolutions hold their norm, which is of no use without them
        layer = name.rpartition(".")[0].removesuffix(".norm")
        parents = itertools.accumulate(name.split("."), "{}.{}".format)
        layer = next((parent for parent in parents if parent in sequences), layer)
        layers.setdefault(layer, {})[name] = value.shape
    return layers

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

    This is the inheriting strategy of Kang et al. (NeurIPS 2021). Weights outside the backbone's
    bottom-up network are copied where names and shapes match, also between detectors of different
    kinds. Only whole layers are copied, because a bias is useless without its weight. A sequence
    whose layers only have numbers (a RetinaNet's ``cls_subnet``) counts as one layer, because the
    same number means another layer in another sequence. Each network keeps its own pixel mean and
    deviation. The copied names are logged.

    Args:
        student: gets the weights in place.
        teacher: gives the weights.

    Returns:
        The copied names, and the names of the student's weights that the teacher could not give.

    Raises:
        UserError: when there is nothing to copy.
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
    """Map each layer to the names and shapes of its weights."""
    sequences = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential)
        and all(child.isdigit() for child, _ in module.named_children())
    }
    layers: dict[str, dict[str, torch.Size]] = {}
    for name, value in state.items():
        # a norm counts as part of the Detectron2 convolution that holds it and is useless alone
        layer = name.rpartition(".")[0].removesuffix(".norm")
        parents = itertools.accumulate(name.split("."), "{}.{}".format)
        layer = next((parent for parent in parents if parent in sequences), layer)
        layers.setdefault(layer, {})[name] = value.shape
    return layers

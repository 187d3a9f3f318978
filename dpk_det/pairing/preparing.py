"""Prepares a batch for a model's backbone, and reads the strides of the backbone's maps."""

import torch
from detectron2.structures import ImageList
from torch import nn

from dpk_det.pairing.batches import Batch


def preprocess(model: nn.Module, batch: Batch) -> ImageList:
    """Normalise, pad and batch images as a model does.

    Detectron2's ``ProposalNetwork`` and ``SemanticSegmentor`` do this inside their forward and have
    no ``preprocess_image`` to call. Their steps are repeated here.

    Args:
        model: has ``preprocess_image``, or ``pixel_mean`` and ``pixel_std``.
        batch: as :class:`~.teacher.Teacher` takes it.
    """
    if hasattr(model, "preprocess_image"):
        return model.preprocess_image(batch)
    mean, std, backbone = model.pixel_mean, model.pixel_std, model.backbone
    images = [(x["image"].to(mean.device) - mean) / std for x in batch]
    # Detectron2 0.6 has no constraint except the divisor
    more = (
        {"padding_constraints": backbone.padding_constraints}
        if hasattr(backbone, "padding_constraints")
        else {}
    )
    return ImageList.from_tensors(images, backbone.size_divisibility, **more)


def prepare_alike(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models turn a batch into the same tensor, if they expect the same channel order.

    False if they do not share one ``preprocess_image``, because their code cannot be compared.
    """
    ways = [getattr(type(m), "preprocess_image", None) for m in (model, other)]
    if ways[0] is None or ways[0] is not ways[1]:
        return False
    for name in ("pixel_mean", "pixel_std"):
        values = [getattr(m, name, None) for m in (model, other)]
        if any(value is None for value in values) or not torch.equal(
            *(value.cpu() for value in values)
        ):
            return False
    return all(
        getattr(model.backbone, name, None) == getattr(other.backbone, name, None)
        for name in ("size_divisibility", "padding_constraints")
    )


def feature_strides(backbone: nn.Module) -> dict[str, int]:
    """Return the stride (pixels per cell) of each map of the backbone, by name."""
    return {name: spec.stride for name, spec in backbone.output_shape().items()}

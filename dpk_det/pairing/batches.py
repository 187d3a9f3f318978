"""Reads the sizes, labels and boxes of images from either form of batch.

Detectors take Detectron2's list of dicts, one per image. Classifiers take one dict of tensors,
``images`` (B, 3, H, W) and ``labels`` (B,), so that small networks do not wait for Python.
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.structures import RotatedBoxes
from torch import Tensor

from dpk_det.distill import Targets

Batch = list[dict[str, Any]] | Mapping[str, Tensor]


def image_sizes(batch: Batch) -> list[tuple[int, int]]:
    """(height, width) of each image in pixels, before padding."""
    if isinstance(batch, Mapping):
        return [tuple(batch["images"].shape[-2:])] * len(batch["images"])
    return [tuple(x["image"].shape[-2:]) for x in batch]


def image_labels(batch: Batch) -> Tensor | None:
    """Return the class of each image, (B,), or None for a detector's batch."""
    return batch.get("labels") if isinstance(batch, Mapping) else None


def flip_channels(batch: Batch) -> Batch:
    """Return the batch with its images' channels in reverse order."""
    if isinstance(batch, Mapping):
        return {**batch, "images": batch["images"].flip(1)}
    return [{**x, "image": x["image"].flip(0)} for x in batch]


def box_targets(batch: Batch, device: torch.device) -> Targets | None:
    """Return boxes and their classes on a device.

    The result is None for a classifier, if an image lacks them, or if boxes are rotated.
    """
    if isinstance(batch, Mapping):
        return None
    instances = [x.get("instances") for x in batch]
    if not all(
        x is not None and x.has("gt_boxes") and x.has("gt_classes") for x in instances
    ) or any(isinstance(x.gt_boxes, RotatedBoxes) for x in instances):
        return None
    return Targets(
        [x.gt_boxes.tensor.to(device, non_blocking=True) for x in instances],
        [x.gt_classes.to(device, non_blocking=True) for x in instances],
    )

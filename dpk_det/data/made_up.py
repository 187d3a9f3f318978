"""Random images and boxes, to try a model without a dataset."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from torch import Tensor

from dpk_det.architectures import classifies
from dpk_det.data.model_classes import num_classes


def made_up_batch(
    cfg: CfgNode, num_images: int, size: tuple[int, int] | None = None
) -> list[dict[str, Any]] | dict[str, Tensor]:
    """Make a batch of noise in the form of Detectron2's mapper, or of a classifier's loader.

    Args:
        cfg: its ``MODEL`` tells whether to add masks and keypoints.
        num_images: B.
        size: (H, W) of the images. None: the height is the largest ``cfg.INPUT.MIN_SIZE_TRAIN``,
            and the width is 4/3 of it, at most ``MAX_SIZE_TRAIN``. For a classifier, None means
            ``INPUT.IMAGES.SIZE`` for both.

    Returns:
        B dicts with ``image`` (3, H, W) uint8, ``instances`` with four boxes each, and ``sem_seg``
        (H, W), which models without segmentation ignore. If datasets must bring proposals
        (``MODEL.LOAD_PROPOSALS``), the dicts have ``proposals`` too. For a classifier one dict:
        ``images`` (B, 3, H, W) uint8, and ``labels`` (B,).
    """
    if classifies(cfg):
        size = size or (cfg.INPUT.IMAGES.SIZE,) * 2
        images = torch.randint(256, (num_images, 3, *size), dtype=torch.uint8)
        return {"images": images, "labels": torch.randint(num_classes(cfg), (num_images,))}
    height = max(cfg.INPUT.MIN_SIZE_TRAIN)
    size = size or (height, min(height * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN))
    return [_made_up_image(cfg, *size) for _ in range(num_images)]


def _made_up_image(cfg: CfgNode, height: int, width: int, num_boxes: int = 4) -> dict[str, Any]:
    instances = Instances((height, width), gt_boxes=_made_up_boxes(num_boxes, height, width))
    instances.gt_classes = torch.randint(num_classes(cfg) or 1, (num_boxes,))
    if cfg.MODEL.MASK_ON:
        masks = torch.zeros(num_boxes, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(
            masks, instances.gt_boxes.tensor.int().tolist(), strict=True
        ):
            mask[y0:y1, x0:x1] = True
        instances.gt_masks = BitMasks(masks)
    if cfg.MODEL.KEYPOINT_ON:
        num_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        corners, ends = instances.gt_boxes.tensor[:, None].split(2, dim=2)
        points = corners + torch.rand(num_boxes, num_keypoints, 2) * (ends - corners)
        seen = torch.full((num_boxes, num_keypoints, 1), 2.0)
        instances.gt_keypoints = Keypoints(torch.cat([points, seen], 2))
    made_up = {
        "image": torch.randint(256, (3, height, width), dtype=torch.uint8),
        "instances": instances,
        "sem_seg": torch.randint(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (height, width)),
        "height": height,
        "width": width,
    }
    if cfg.MODEL.LOAD_PROPOSALS:
        made_up["proposals"] = Instances(
            (height, width),
            proposal_boxes=_made_up_boxes(num_boxes, height, width),
            objectness_logits=torch.zeros(num_boxes),
        )
    return made_up


def _made_up_boxes(num_boxes: int, height: int, width: int) -> Boxes:
    corners = torch.rand(num_boxes, 2) * torch.tensor([width, height]) * 0.5
    sizes = (0.1 + 0.4 * torch.rand(num_boxes, 2)) * torch.tensor([width, height])
    return Boxes(torch.cat([corners, corners + sizes], 1))

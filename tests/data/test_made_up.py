"""Batches of noise: as Detectron2's mapper would make them, for each kind of model."""

import torch

from dpk_det.data import made_up_batch


def test_a_batch_has_boxes_in_the_image_and_pixels_of_known_classes(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (48, 60), 70
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    batch = made_up_batch(cfg, 2)
    assert len(batch) == 2
    for made_up in batch:
        assert set(made_up) == {"image", "instances", "sem_seg", "height", "width"}
        assert made_up["image"].shape == (3, 60, 70) and made_up["image"].dtype == torch.uint8
        assert set(made_up["instances"].get_fields()) == {"gt_boxes", "gt_classes"}
        boxes = made_up["instances"].gt_boxes
        assert len(boxes) == 4 and (boxes.area() > 0).all()
        assert boxes.inside_box((60, 70)).all()
        assert made_up["sem_seg"].shape == (60, 70) and made_up["sem_seg"].dtype == torch.int64
        assert made_up["sem_seg"].unique().tolist() == [0, 1, 2]


def test_masks_and_keypoints_are_in_their_boxes(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN = (100,)
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    (made_up,) = made_up_batch(cfg, 1)
    boxes = made_up["instances"].gt_boxes.tensor
    masks = made_up["instances"].gt_masks.get_bounding_boxes().tensor
    assert (masks - boxes).abs().max() <= 1
    points = made_up["instances"].gt_keypoints.tensor
    assert points.shape == (4, 3, 3)
    assert ((points[..., :2] >= boxes[:, None, :2]) & (points[..., :2] <= boxes[:, None, 2:])).all()


def test_proposals_go_along_where_the_dataset_would_bring_them(cfg):
    cfg.MODEL.LOAD_PROPOSALS = True
    (made_up,) = made_up_batch(cfg, 1)
    proposals = made_up["proposals"]
    assert set(proposals.get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert (proposals.proposal_boxes.area() > 0).all()

"""Both forms of a batch say the same of the same images."""

import torch
from detectron2.structures import RotatedBoxes

from dpk_det.pairing.batches import box_targets, flip_channels, image_labels, image_sizes


def test_a_dict_of_tensors_says_what_a_list_of_images_does():
    images, labels = torch.rand(3, 3, 4, 6), torch.tensor([2, 0, 1])
    one, several = {"images": images, "labels": labels}, [{"image": x} for x in images]
    assert image_sizes(one) == image_sizes(several) == [(4, 6)] * 3
    flipped = flip_channels(one)
    assert torch.equal(flipped["images"], torch.stack([x["image"] for x in flip_channels(several)]))
    assert torch.equal(flipped["images"][:, 0], images[:, 2])
    assert flipped["labels"] is labels and torch.equal(one["images"], images)
    assert image_labels(one) is labels and image_labels(several) is None
    device = torch.device("cpu")
    assert box_targets(one, device) is None and box_targets(several, device) is None


def test_instances_without_boxes_are_no_targets(batch):
    device = torch.device("meta")
    targets = box_targets(batch, device)
    assert [len(boxes) for boxes in targets.boxes] == [2, 2]
    assert all(x.device == device for x in (*targets.boxes, *targets.classes))
    batch[1]["instances"].remove("gt_boxes")
    assert box_targets(batch, device) is None


def test_boxes_that_rotate_are_no_targets(batch):
    # they have five numbers, a centre first
    boxes = RotatedBoxes(torch.rand(2, 5))
    batch[1]["instances"].remove("gt_boxes")
    batch[1]["instances"].gt_boxes = boxes
    assert box_targets(batch, torch.device("cpu")) is None

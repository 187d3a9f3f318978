import pytest

from dpk_det.errors import UserError
from dpk_det.project.measures import measure


def content(boxes, size=(640, 480), **more):
    """Of one photo for each list of boxes."""
    objects = [(i, box) for i, some in enumerate(boxes) for box in some]
    return {
        "images": [{"id": i, "width": size[0], "height": size[1]} for i in range(len(boxes))],
        "annotations": [{"image_id": i, "category_id": 7, "bbox": x, **more} for i, x in objects],
        "categories": [{"id": 9, "name": "b"}, {"id": 7, "name": "a"}],
    }


def test_photos_and_objects_are_counted_and_sized():
    found = measure(content([[[0, 0, 10, 40]], [[0, 0, 30, 30], [5, 5, 40, 40]], []]))
    assert found.classes == ["a", "b"]
    assert (found.num_images, found.num_objects, found.crowded) == (3, 3, 1)
    assert (found.short, found.aspect) == (480, pytest.approx(4 / 3))
    assert found.sizes == pytest.approx((21, 25, 30))  # of 20, 30 and 40
    assert not found.masks


def test_crowds_are_no_objects_and_masks_are_those_of_all():
    assert measure(content([[[0, 0, 9, 9]]], segmentation=[[0, 0, 1, 1, 0, 1]])).masks
    with pytest.raises(UserError, match="no object to learn from"):
        measure(content([[[0, 0, 9, 9]]], iscrowd=1))

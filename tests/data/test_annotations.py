"""What stands in a COCO JSON file: each mistake in a sentence, and what Detectron2 says of it."""

import copy
import logging

import cv2
import numpy as np
import pytest

from dpk_det.data.annotations import check_annotations
from dpk_det.errors import UserError


@pytest.fixture
def content(tmp_path):
    """Two images of 40 x 30 with a box each."""
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((30, 40, 3), np.uint8))
    box = {"bbox": [5, 6, 10.5, 12], "area": 126, "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in (1, 2)],
        "annotations": [{"id": i, "image_id": i, "category_id": i, **box} for i in (1, 2)],
        "categories": [{"id": i, "name": f"pet{i}"} for i in (1, 2)],
    }


@pytest.fixture
def warnings(content, tmp_path, caplog):
    """``warnings(evaluated=True)`` checks the content; gives what was logged."""

    def check(evaluated=True, image_root=tmp_path):
        caplog.clear()
        before = copy.deepcopy(content)
        with caplog.at_level(logging.WARNING, "dpk_det"):
            check_annotations(content, "pets.json", str(image_root), evaluated)
        assert content == before
        return [x.getMessage() for x in caplog.records]

    return check


def test_all_well(warnings):
    assert warnings() == []


def change(name, index=0, **fields):
    return lambda content: content[name][index].update(fields)


def drop(name, field):
    return lambda content: content[name][1].pop(field)


MISTAKES = {
    "no list of images": lambda content: content.pop("images"),
    "no list of annotations": lambda content: content.update(annotations={}),
    "no list of annotations, each": lambda content: content.update(annotations=[3]),
    r"1 image\(s\) without 'id', first {file_name: '2.png', height": drop("images", "id"),
    "without 'file_name'": drop("images", "file_name"),
    "without 'height'": drop("images", "height"),
    "without 'width'": drop("images", "width"),
    r"image\(s\) of no size, .*height: 30, width: '40'": change("images", width="40"),
    r"of no size, .*height: None.* whole numbers": change("images", height=None),
    "of no size, .*width: 0}": change("images", width=0),
    r"annotation\(s\) without 'id'": drop("annotations", "id"),
    "without 'image_id'": drop("annotations", "image_id"),
    "without 'category_id'": drop("annotations", "category_id"),
    "without 'bbox'": drop("annotations", "bbox"),
    "without 'area'": drop("annotations", "area"),
    "without 'iscrowd'": drop("annotations", "iscrowd"),
    "2 images share their id, first {id: 2": change("images", id=2),
    "2 annotations share their id": change("annotations", id=2),
    "2 categories share their id": change("categories", id=2),
    r"category that is not listed, .*category_id: 9.* \(1, 2\)": change(
        "annotations", category_id=9
    ),
    "category_id: '1'": change("annotations", category_id="1"),
    "not four numbers": change("annotations", bbox=[1, 2, 3]),
    r"not four numbers, .*bbox: \[None": change("annotations", bbox=[None, 2, 3, 4]),
    "four numbers, first": change("annotations", bbox=[float("nan"), 2, 3, 4]),
    "pixels": change("annotations", bbox="1 2 3 4"),
    "with 'ignore'.* write iscrowd: 1": change("annotations", ignore=1),
    "without a file below .*'gone.png'.*: correct": change("images", file_name="gone.png"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_a_sentence_that_names_file_and_entry(content, warnings, message):
    MISTAKES[message](content)
    with pytest.raises(UserError, match=message) as error:
        warnings()
    assert str(error.value).startswith("pets.json")
    assert "\n" not in str(error.value)


def test_what_only_an_evaluation_needs_is_not_asked_of_training_data(content, warnings):
    del content["annotations"][0]["area"], content["annotations"][1]["iscrowd"]
    assert warnings(evaluated=False) == []


@pytest.mark.parametrize("fields", [{}, {"segmentation": []}, {"segmentation": None}])
def test_models_of_masks_need_the_mask_of_each_object(content, fields):
    first, second = content["annotations"]
    second |= {"segmentation": [[5, 6, 15, 6, 15, 18]]}
    first |= fields
    check_annotations(content, "pets.json", None, True)
    with pytest.raises(UserError, match=r"1 annotation\(s\) without 'segmentation', first {id: 1,"):
        check_annotations(content, "pets.json", None, True, masks=True)
    first["iscrowd"] = 1  # training leaves it out
    check_annotations(content, "pets.json", None, True, masks=True)


def test_images_at_an_address_are_not_looked_for(content, warnings):
    change("images", file_name="gone.png")(content)
    assert warnings(image_root="https://example.org/images") == []
    check_annotations(content, "pets.json", None, True)


@pytest.mark.parametrize(
    ("box", "is_empty"),
    [
        ([0, 0, 40, 30], False),
        ([-5, -5, 6, 6], False),
        ([39, 29, 100, 100], False),
        ([5, 5, 0, 4], True),
        ([5, 5, 4, 0], True),
        ([5, 5, -4, 4], True),
        ([-5, 5, 5, 5], True),
        ([40, 5, 5, 5], True),
        ([5, 30, 5, 5], True),
    ],
)
def test_boxes_that_training_leaves_out_are_counted(content, warnings, box, is_empty):
    from detectron2.data.detection_utils import annotations_to_instances, filter_empty_instances
    from detectron2.data.detection_utils import transform_instance_annotations as transform
    from detectron2.data.transforms import TransformList
    from detectron2.structures import BoxMode

    content["annotations"][0]["bbox"] = box
    annotation = {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    made = transform(annotation, TransformList([]), (30, 40))
    kept = filter_empty_instances(annotations_to_instances([made], (30, 40)))
    assert len(kept) == (0 if is_empty else 1)
    expected = "pets.json: 1 of 2 boxes have no area within their image; training leaves them out."
    assert warnings() == ([expected] if is_empty else [])


def test_annotations_without_an_image_are_counted(content, warnings):
    change("annotations", image_id=99)(content)
    (line,) = warnings()
    assert "1 of 2 annotations belong to images that are not listed" in line

"""What stands in a COCO JSON file: each mistake in a sentence, and what Detectron2 says of it."""

import json
import logging

import numpy as np
import pytest
from pycocotools import mask as mask_util

from dpk_det.data.annotations import Use, check_annotations
from dpk_det.data.coco_format import read_coco
from dpk_det.errors import UserError


@pytest.fixture
def warnings(content, tmp_path, caplog):
    """``warnings(evaluated=True)`` checks the content; gives what was logged."""

    def check(**use):
        caplog.clear()
        (tmp_path / "pets.json").write_text(json.dumps(content))
        with caplog.at_level(logging.WARNING, "dpk_det"):
            use = Use(**(use or {"trained": True, "evaluated": True}))
            check_annotations(read_coco(str(tmp_path / "pets.json")), "pets.json", use)
        return [x.getMessage() for x in caplog.records]

    return check


def test_all_well(warnings):
    assert warnings() == []


def change(name, index=0, **fields):
    return lambda content: content[name][index].update(fields)


def drop(name, field):
    return lambda content: content[name][1].pop(field)


MISTAKES = {
    "lists no images: add them": lambda content: content["images"].clear(),
    "numbers and texts for ids, 1 and '2'": change("images", 1, id="2"),
    "2 images share their id, first {id: 2": change("images", id=2),
    "2 annotations share their id": change("annotations", id=2),
    "2 categories share their id": change("categories", id=2),
    "2 categories share their name, first {id: 1, name: 'pet2'}": lambda x: x["categories"][
        0
    ].update(name="pet2"),
    r"category that is not listed, .*category_id: 9.* \(1, 2\)": change(
        "annotations", category_id=9
    ),
    "of id 0, which pycocotools takes for no object": change("annotations", id=0),
    "without 'area', to evaluate": drop("annotations", "area"),
    "without 'area', to": change("annotations", area=None),
    "without 'iscrowd', to evaluate": drop("annotations", "iscrowd"),
    r"1 box\(es\) of negative size": change("annotations", bbox=[5, 5, -4, 4]),
    "negative size or far from any image": change("annotations", bbox=[1e300, 0, 4, 4]),
    "with 'ignore'.* write iscrowd: 1": change("annotations", ignore=1),
    "with 'ignore', which": change("annotations", ignore=None),
    "a polygon of an odd number": change("annotations", segmentation=[[1, 1, 5, 1, 5, 5, 1]]),
    "or none of three points": change("annotations", segmentation=[[1, 1, 5, 1]]),
    "1 mask.* with a polygon far from any image": change(
        "annotations", segmentation=[[0, 0, 1e300, 5, 5, 5]]
    ),
    "1 annotation.* whose image_id is a text, unlike": change("annotations", image_id="1"),
    "no object within a listed image": lambda x: [
        y.update(bbox=[500, 500, 5, 5]) for y in x["annotations"]
    ],
    "no annotation of a listed image.*nothing to measure": lambda x: x["annotations"].clear(),
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
    change("annotations", id=0)(content)
    assert warnings(trained=True) == []


def test_ids_may_be_texts_as_pycocotools_takes_them(content, warnings):
    for i in (0, 1):
        change("images", i, id=f"photo{i}")(content)
        change("annotations", i, image_id=f"photo{i}")(content)
    assert warnings() == []


def test_training_needs_an_object_where_it_leaves_empty_images_out(content, warnings):
    for x in content["annotations"]:
        x["iscrowd"] = 1
    with pytest.raises(UserError, match="no object within a listed image.*nothing to learn"):
        warnings(trained=True)
    assert warnings(trained=True, keeps_empty=True) == []
    del content["annotations"]
    with pytest.raises(UserError, match="has no list of annotations to learn from"):
        warnings(trained=True, keeps_empty=True)
    (line,) = warnings(evaluated=True)
    assert "nothing is measured" in line


# ------------------------------------------------------------------ masks and keypoints


@pytest.mark.parametrize("fields", [{}, {"segmentation": []}, {"segmentation": None}])
def test_models_of_masks_need_the_mask_of_each_object(content, warnings, fields):
    first, second = content["annotations"]
    second |= {"segmentation": [[5, 6, 15, 6, 15, 18]]}
    first |= fields
    assert warnings(trained=True, evaluated=True) == []
    with pytest.raises(UserError, match=r"1 annotation\(s\) without 'segmentation', first {id: 1,"):
        warnings(trained=True, masks=True)
    first["iscrowd"] = 1  # training leaves it out
    warnings(trained=True, masks=True)
    with pytest.raises(UserError, match="without 'segmentation'"):  # evaluation does not
        warnings(evaluated=True, masks=True)


def encode(height=30, width=40, text=True):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[3:9, 4:30] = mask[11, 2] = 1
    code = mask_util.encode(mask)
    if text:
        return {"size": [height, width], "counts": code["counts"].decode()}
    pixels = mask.ravel("F")
    ends = [0, *(np.flatnonzero(np.diff(pixels)) + 1).tolist(), len(pixels)]
    return {"size": [height, width], "counts": np.diff(ends).tolist()}


@pytest.mark.parametrize("text", [True, False])
def test_run_length_codes_are_for_masks_of_pixels(content, warnings, text):
    for x in content["annotations"]:
        x["segmentation"] = encode(text=text)
    assert warnings(trained=True, evaluated=True, masks=True, polygons=False) == []
    assert warnings(evaluated=True, masks=True) == []
    assert warnings(trained=True) == []
    with pytest.raises(UserError, match=r"2 mask.*INPUT.MASK_FORMAT is 'polygon'.*bitmask"):
        warnings(trained=True, masks=True)
    content["annotations"][0]["segmentation"] = [[5, 6, 15, 6, 15, 18]]  # Detectron2 fills it
    assert warnings(trained=True, masks=True, polygons=False) == []


@pytest.mark.parametrize(
    "code",
    [
        encode(40, 30),
        encode(29, 40),
        {"size": [30, 40], "counts": [1199]},
        {"size": [30, 40], "counts": encode()["counts"][:-1]},
        {"size": [30, 40], "counts": encode()["counts"] + "1"},
        {"size": [30, 40], "counts": "no code"},
        {"size": [30, 40], "counts": ""},
    ],
)
def test_run_length_codes_fill_their_image(content, warnings, code):
    for x in content["annotations"]:
        x["segmentation"] = encode()
    change("annotations", segmentation=code)(content)
    with pytest.raises(
        UserError, match="1 run-length code.* do not fill their image, first {id: 1"
    ):
        warnings(trained=True, masks=True, polygons=False)
    assert warnings(trained=True) == []


def test_a_short_polygon_beside_a_whole_one_is_counted(content, warnings):
    whole = [5, 6, 15, 6, 15, 18]
    change("annotations", segmentation=[whole, [1, 2, 3, 4]])(content)
    assert warnings() == ["pets.json: 1 polygons have less than three points and are left out."]


def test_models_of_keypoints_need_as_many(content, warnings):
    use = {"trained": True, "keypoints": 2}
    for x in content["annotations"]:
        x["keypoints"] = [5, 6, 2, 7, 8, 1]
    assert warnings(**use) == []
    with pytest.raises(UserError, match=r"2 annotation.* without 'num_keypoints', to evaluate"):
        warnings(evaluated=True, keypoints=2)
    with pytest.raises(UserError, match=r"2 annotation.* without 3 keypoints, .*give .* as 9 num"):
        warnings(trained=True, keypoints=3)
    content["annotations"][0].pop("keypoints")
    with pytest.raises(UserError, match="1 annotation.* without 2 keypoints"):
        warnings(**use)
    content["annotations"][0]["iscrowd"] = 1
    assert warnings(**use) == []


# ------------------------------------------------------------------ warnings


@pytest.mark.parametrize(
    ("box", "is_empty"),
    [
        ([0, 0, 40, 30], False),
        ([-5, -5, 6, 6], False),
        ([39, 29, 100, 100], False),
        ([5, 5, 0, 4], True),
        ([5, 5, 4, 0], True),
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
    assert warnings(trained=True) == ([expected] if is_empty else [])


def test_annotations_without_an_image_are_counted(content, warnings):
    change("annotations", image_id=99)(content)
    (line,) = warnings(trained=True)
    assert "1 of 2 annotations belong to images that are not listed" in line


def test_images_of_one_file_are_counted(content, warnings):
    change("images", file_name="2.png")(content)
    assert warnings() == ["pets.json: 2 of 2 images share their file with another image."]


def test_classes_that_cannot_be_measured_are_counted(content, warnings):
    content["categories"].append({"id": 7, "name": "axolotl"})
    (line,) = warnings(evaluated=True)
    assert "1 of 3 categories have no object, so that their AP is not a number" in line
    assert "axolotl" in line
    assert warnings(trained=True) == []

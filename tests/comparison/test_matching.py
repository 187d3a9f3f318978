"""What is right and wrong on a photo, against cases that can be seen by eye."""

import pytest

from dpk_det.comparison.matching import Box, as_coco, f1, match, objects


def truth(*annotations):
    """A dataset of two images and two classes; an annotation is (image, class, box, crowd)."""
    return as_coco(
        {
            "images": [{"id": id_, "height": 100, "width": 100} for id_ in (7, 8)],
            "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
            "annotations": [
                {
                    "id": id_,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
                for id_, (image, category, box, crowd) in enumerate(annotations, 1)
            ],
        }
    )


def found(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


CAT, DOG = [10, 10, 20, 20], [50, 50, 30, 40]


@pytest.mark.parametrize(
    ("detections", "kinds"),
    [
        ([], ["cat missed", "dog missed"]),
        ([found(7, 3, CAT, 0.9)], ["cat right", "dog missed"]),
        # the same object twice, the lower score is too much
        ([found(7, 3, CAT, 0.6), found(7, 3, CAT, 0.9)], ["cat right", "cat wrong", "dog missed"]),
        # in its place, of another class
        ([found(7, 5, CAT, 0.9)], ["cat missed", "dog missed", "dog wrong"]),
        # 20 x 10 of 20 x 20 covered: IoU 0.5, which counts; one pixel less does not
        ([found(7, 3, [10, 10, 20, 10], 0.9)], ["cat right", "dog missed"]),
        ([found(7, 3, [10, 10, 20, 9], 0.9)], ["cat missed", "cat wrong", "dog missed"]),
        ([found(8, 3, CAT, 0.9)], ["cat missed", "dog missed"]),
    ],
)
def test_detections_are_matched_with_objects(detections, kinds):
    boxes = match(truth((7, 3, CAT, False), (7, 5, DOG, False)), detections)
    assert sorted(f"{box.name} {box.kind}" for box in boxes[7]) == kinds
    assert all(box.kind == "wrong" for box in boxes[8])


def test_boxes_are_those_that_were_found():
    boxes = match(truth((7, 3, CAT, False)), [found(7, 3, [11.5, 10, 20, 20], 0.75)])
    assert boxes[7] == [Box((11.5, 10), (20, 20), "cat", "right", 0.75)]


def test_crowds_are_neither_missed_nor_is_it_wrong_to_find_them():
    crowd = truth((7, 3, DOG, True), (7, 3, CAT, False))
    boxes = match(crowd, [found(7, 3, [55, 55, 10, 10], 0.9)])
    assert [box.kind for box in boxes[7]] == ["missed"]
    assert objects(crowd, 7) == [Box((10, 10), (20, 20), "cat", "object")]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], 1.0),
        (["right"], 1.0),
        (["missed"], 0.0),
        (["wrong"], 0.0),
        # precision 2/3, recall 1/2
        (["right", "right", "wrong", "missed", "missed"], 2 / (3 / 2 + 2)),
    ],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(kinds, expected):
    assert f1([Box((0, 0), (1, 1), "", kind) for kind in kinds]) == pytest.approx(expected)

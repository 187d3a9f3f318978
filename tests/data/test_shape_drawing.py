"""One drawn image: what is on it, and that its annotations say so."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dpk_det.data import shape_drawing, shapes

SAMPLE = 300
GOLDEN_BOXES = [(3, 66, 3, 24, 23), (1, 7, 72, 11, 11), (5, 59, 81, 8, 8), (2, 8, 50, 17, 17)]
GOLDEN_MEAN = 129.68


@pytest.fixture(scope="module")
def sample() -> list[tuple[np.ndarray, list[dict]]]:
    return [shape_drawing.draw_image(7, index) for index in range(SAMPLE)]


def polygon_mask(annotation: dict, size: int = 96) -> np.ndarray:
    """pycocotools' own rasterisation of a polygon, (size, size) bool."""
    rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], size, size))
    return coco_mask.decode(rle).astype(bool)


def test_an_image_depends_on_its_arguments_alone(sample):
    for index in (5, 2, 5):
        image, annotations = shape_drawing.draw_image(7, index)
        assert np.array_equal(image, sample[index][0])
        assert annotations == sample[index][1]
    assert not np.array_equal(shape_drawing.draw_image(8, 5)[0], sample[5][0])
    # The splits are drawn from different seeds: no image of one is in the other.
    assert len({image.tobytes() for image, _ in sample}) == SAMPLE
    assert shapes.SPLITS["train"][1] != shapes.SPLITS["val"][1]


def test_what_is_drawn_changes_only_with_the_version():
    """If this fails because the drawing was changed: raise shapes.VERSION, then mend the numbers
    here."""
    assert shapes.VERSION == 1
    image, annotations = shape_drawing.draw_image(1, 0)
    found = [(a["category_id"], *(round(v) for v in a["bbox"])) for a in annotations]
    assert found == GOLDEN_BOXES
    assert image.mean() == pytest.approx(GOLDEN_MEAN, abs=0.05)


def test_image_and_annotations_are_well_formed(sample):
    for image, annotations in sample:
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert 1 <= len(annotations) <= 6
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            assert x >= 0 and y >= 0 and x + width <= 96.001 and y + height <= 96.001
            assert 7.9 <= max(width, height) <= 48.1
            assert annotation["iscrowd"] == 0
            assert json.loads(json.dumps(annotation)) == annotation
    counts = np.bincount([len(annotations) for _, annotations in sample], minlength=7)
    assert (counts[1:] > 0).all()


def test_classes_and_sizes_are_balanced(sample):
    objects = [a for _, annotations in sample for a in annotations]
    shares = np.bincount([a["category_id"] for a in objects], minlength=7)[1:] / len(objects)
    assert len(shares) == len(shape_drawing.CLASSES) == 6
    np.testing.assert_allclose(shares, 1 / 6, atol=0.04)
    extents = np.log2([max(a["bbox"][2:]) for a in objects])
    # Log-uniform over 8..48: the median is their geometric mean, 19.6.
    assert np.median(extents) == pytest.approx(np.log2(19.6), abs=0.25)


def test_colour_does_not_tell_the_class(sample):
    colours: dict[int, list] = {}
    for image, annotations in sample:
        top = annotations[-1]  # nothing covers the last one
        # A ring's middle is background: look where the shape itself is.
        outline = np.reshape(top["segmentation"][0], (-1, 2))
        inside = outline.mean(axis=0) + 0.75 * (outline[0] - outline.mean(axis=0))
        x, y = inside.astype(int)
        colours.setdefault(top["category_id"], []).append(image[y, x])
    means = np.array([np.mean(colours[category], axis=0) for category in sorted(colours)])
    # About 50 samples a class with a deviation of about 75: a standard error of 11.
    assert np.abs(means - means.mean(axis=0)).max() < 45


def test_boxes_and_areas_agree_with_pycocotools(sample):
    for _, annotations in sample[:100]:
        for annotation in annotations:
            rle = coco_mask.frPyObjects(annotation["segmentation"], 96, 96)[0]
            x, y, width, height = annotation["bbox"]
            found = coco_mask.toBbox(rle)
            expected = np.array([x, y, x + width, y + height])
            # Whole pixels, and the sharp tips are lost.
            np.testing.assert_allclose([*found[:2], *(found[:2] + found[2:])], expected, atol=1.5)
            # Rasterising moves the border by up to half a pixel.
            perimeter = 2 * (width + height)
            assert coco_mask.area(rle) == pytest.approx(annotation["area"], abs=0.5 * perimeter)

            points = np.reshape(annotation["segmentation"][0], (-1, 2))
            np.testing.assert_allclose(points.min(axis=0), (x, y), atol=0.006)
            np.testing.assert_allclose(points.max(axis=0), (x + width, y + height), atol=0.011)


def test_pixels_lie_where_the_box_says():
    """Paint each class on a plain canvas and find it again by its pixels."""
    rng = np.random.default_rng(0)
    for name in shape_drawing.CLASSES:
        for _ in range(20):
            outline = shape_drawing.place(rng, name, 96)
            mask = shape_drawing.draw_mask(name, outline, 96)
            rows, columns = np.nonzero(mask > 0.02)
            x0, y0 = outline.min(axis=0)
            x1, y1 = outline.max(axis=0)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(found, [x0, y0, x1, y1], atol=1.3)
            area = cv2.contourArea(outline.astype(np.float32))
            if name == "ring":
                assert mask[tuple(outline.mean(axis=0).astype(int)[::-1])] == 0
                area *= 1 - 0.55**2
            perimeter = cv2.arcLength(outline.astype(np.float32), closed=True)
            assert mask.sum() == pytest.approx(area, abs=0.2 * perimeter)


def test_no_shape_is_hidden(sample):
    shown, overlaps = 0, 0
    for _, annotations in sample:
        if any(shape_drawing.CLASSES[a["category_id"] - 1] == "ring" for a in annotations):
            continue  # its polygon covers what is seen through its hole
        masks = [polygon_mask(annotation) for annotation in annotations]
        for i, mask in enumerate(masks):
            later = [mask & other for other in masks[i + 1 :]]
            covered = np.any([np.zeros_like(mask), *later], axis=0)
            visible = 1 - covered.sum() / mask.sum()
            # Whole pixels here, shares of them when drawing.
            assert visible > shape_drawing.MIN_VISIBLE - 0.1
            shown += 1
            overlaps += visible < 0.95
    assert shown > 100
    assert overlaps > 0.05 * shown


@pytest.mark.parametrize("size", [64, 128])
def test_shapes_scale_with_the_image(size):
    for index in range(20):
        image, annotations = shape_drawing.draw_image(0, index, size=size)
        assert image.shape == (size, size, 3)
        for annotation in annotations:
            assert 7.9 <= max(annotation["bbox"][2:]) * 96 / size <= 48.1

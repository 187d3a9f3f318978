"""What masks hold, against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as mask_util

from dpk_det.data.coco_format import Image, RunLengths
from dpk_det.data.masks import fills, is_far, is_no_polygon, polygons


@pytest.mark.parametrize("seed", range(20))
def test_what_pycocotools_encodes_fills_its_image_and_no_other(seed):
    rng = np.random.default_rng(seed)
    height, width = map(int, rng.integers(1, 200, 2))
    mask = np.asfortranarray(rng.random((height, width)) < rng.random(), np.uint8)
    text = mask_util.encode(mask)["counts"].decode()
    code = RunLengths(size=(height, width), counts=text)
    assert fills(code, Image(id=1, file_name="x", height=height, width=width))
    assert not fills(code, Image(id=1, file_name="x", height=height, width=width + 1))
    longer = RunLengths(size=(height, width + 1), counts=text)
    assert not fills(longer, Image(id=1, file_name="x", height=height, width=width + 1))
    assert fills(code, None)  # of an image that is not listed


def test_polygons_fill_nothing_that_is_counted():
    square = [[0.0, 0.0, 5.0, 0.0, 5.0, 5.0]]
    assert polygons(square) == square and not polygons(None)
    assert fills(square, Image(id=1, file_name="x", height=1, width=1))
    assert not is_no_polygon(square) and is_no_polygon([[0.0, 0.0, 5.0]]) and not is_no_polygon([])
    assert is_far([[0.0, 0.0, 5.0, 0.0, 5.0, 1e7]]) and not is_far(square)

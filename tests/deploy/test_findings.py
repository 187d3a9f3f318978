"""The JSON file of what was found."""

import json

import numpy as np
import pytest

from dpk_det.deploy.findings import Findings
from dpk_det.errors import UserError


def test_images_and_annotations_are_numbered_and_classes_have_the_datasets_ids(tmp_path):
    found = Findings({7: "square", 3: "disc"}, tmp_path, description="mine")
    image = np.zeros((4, 6, 3), np.uint8)
    found.add(tmp_path / "a" / "x.mp4", image, [{"category_id": 1, "score": 0.5}], frame=0)
    found.add(tmp_path / "y.png", image, [{"category_id": 0}, {"category_id": 1}])
    assert found.write(tmp_path / "found.json") == (3, 2)
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "info": {"description": "mine", "images": str(tmp_path), "failed": {}},
        "images": [
            {"id": 1, "file_name": "a/x.mp4", "height": 4, "width": 6, "frame": 0},
            {"id": 2, "file_name": "y.png", "height": 4, "width": 6},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "score": 0.5},
            {"id": 2, "image_id": 2, "category_id": 7},
            {"id": 3, "image_id": 2, "category_id": 3},
        ],
        "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}],
    }


def test_many_failures_are_counted_in_the_sentence_and_listed_in_the_file(tmp_path):
    found = Findings({}, tmp_path)
    found.check_failures(12, "Done.")
    for i in range(12):
        found.add_failure(tmp_path / f"{i:02}.jpg", ValueError("not\n  readable"))
    with pytest.raises(
        UserError, match=r"^12 of 13 files failed, .* and 2 more: mend .* Done"
    ) as e:
        found.check_failures(13, "Done.")
    assert f"{tmp_path}/09.jpg (not readable)" in str(e.value) and "10.jpg" not in str(e.value)
    found.write(tmp_path / "found.json")
    failed = json.loads((tmp_path / "found.json").read_text())["info"]["failed"]
    assert failed == {f"{i:02}.jpg": "not readable" for i in range(12)}

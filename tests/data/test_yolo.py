from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpk_det.data.yolo import read_data_yaml, yolo_to_coco
from dpk_det.errors import UserError


@pytest.fixture
def yolo(tmp_path):
    """``yolo(lines)`` writes a photo of 40 x 30 pixels with these labels, and its data.yaml."""

    def write(
        lines="", name="a", yaml="train: images\nnames: [ant, cat]\n", photo=(40, 30), **tags
    ):
        for folder in ("images/deep", "labels/deep"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.zeros((photo[1], photo[0], 3), np.uint8))
        exif = image.getexif()
        exif.update(tags.get("exif", {}))
        image.save(tmp_path / f"images/{name}.jpg", exif=exif)
        (tmp_path / f"labels/{name}.txt").write_text(lines)
        (tmp_path / "data.yaml").write_text(yaml)
        return read_data_yaml(tmp_path / "data.yaml")

    return write


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("1 0.5 0.5 1 1", [0, 0, 40, 30]),
        ("1 0.25 0.5 0.5 0.2", [0, 12, 20, 6]),
        ("1 0 0 0.5 0.5", [0, 0, 10, 7.5]),  # beyond the image
        ("1 0.1 0.2 0.6 0.2 0.6 0.9", [4, 6, 20, 21]),  # a polygon
    ],
)
def test_boxes_are_shares_of_the_image(yolo, line, box):
    content, _ = yolo_to_coco(yolo(line), "train")
    (found,) = content["annotations"]
    assert found["bbox"] == pytest.approx(box) and found["area"] == pytest.approx(box[2] * box[3])
    assert found["category_id"] == 2 and found["iscrowd"] == 0
    assert content["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]


def test_a_photo_is_as_large_as_it_is_seen(yolo):
    content, _ = yolo_to_coco(yolo("0 0.5 0.5 1 1", exif={0x0112: 6}), "train")
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (30, 40)
    assert content["annotations"][0]["bbox"] == [0, 0, 30, 40]


def test_photos_without_labels_and_in_deeper_folders_count(yolo, tmp_path):
    yolo("", name="deep/b")
    yolo("0 0.5 0.5 1 1\n\n", name="c")
    content, folder = yolo_to_coco(yolo("", name="a"), "train")
    assert folder == tmp_path / "images"
    assert [x["file_name"] for x in content["images"]] == ["a.jpg", "c.jpg", "deep/b.jpg"]
    assert [x["image_id"] for x in content["annotations"]] == [2]


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: [images]\nnames: {0: ant, 1: cat}\n",
        "train: ../images\nnames: [ant, cat]\n",  # as some services write it
        "train: list.txt\nnames: [ant, cat]\n",
    ],
)
def test_paths_are_found_in_every_way(yolo, tmp_path, yaml):
    (tmp_path / "list.txt").write_text("./images/a.jpg\n")
    content, _ = yolo_to_coco(yolo("1 0.5 0.5 1 1", yaml=yaml), "train")
    assert [x["category_id"] for x in content["annotations"]] == [2]


POSE = "train: images\nnames: [ant, cat]\nkpt_shape: {}\n"


@pytest.mark.parametrize(
    ("shape", "keypoints"),
    [("[3, 2]", " 0.1 0.2 0.6 0.2 0.6 0.9"), ("[2, 3]", " 0.1 0.2 2 0.6 0.2 1"), ("[3, 2]", "")],
)
def test_keypoints_are_left_out(yolo, shape, keypoints):
    given = yolo(f"1 0.25 0.5 0.5 0.2{keypoints}", yaml=POSE.format(shape))
    (found,) = yolo_to_coco(given, "train")[0]["annotations"]
    assert found["bbox"] == pytest.approx([0, 12, 20, 6])


def test_keypoints_that_do_not_fit_are_told(yolo):
    given = yolo("0 0.1 0.2 0.6 0.2 0.6 0.9", yaml=POSE.format("[3, 2]"))
    with pytest.raises(UserError, match=r"a\.txt, line 1, .* or these and the 6 values that kpt_"):
        yolo_to_coco(given, "train")


@pytest.mark.parametrize("shape", ["3", "[3]", "[3, two]", "[0, 2]", "{a: 1}"])
def test_a_shape_of_keypoints_that_is_none_is_told(yolo, shape):
    with pytest.raises(UserError, match=r"data\.yaml has .* as kpt_shape: write"):
        yolo(yaml=POSE.format(shape))


def test_relative_and_absolute_paths_mix(yolo, tmp_path, monkeypatch):
    yolo("0 0.5 0.5 1 1")
    (tmp_path / "images/a.jpg").rename(tmp_path / "b.jpg")
    yaml = f"train: [images, {tmp_path / 'list.txt'}]\nnames: [ant]\n"
    (tmp_path / "list.txt").write_text(str(tmp_path / "b.jpg"))
    yolo("0 0.5 0.5 1 1", yaml=yaml)
    monkeypatch.chdir(tmp_path)
    content, folder = yolo_to_coco(read_data_yaml(Path("data.yaml")), "train")
    assert [x["file_name"] for x in content["images"]] == ["images/a.jpg", "b.jpg"]
    assert folder == tmp_path


def test_labels_lie_beside_their_photos_in_a_folder_of_images(tmp_path):
    """The folder of that name is none of YOLO's."""
    folder = tmp_path / "images" / "project"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "a.jpg")
    (folder / "a.txt").write_text("0 0.5 0.5 1 1")
    (folder / "data.yaml").write_text("train: .\nnames: [ant]\n")
    content, _ = yolo_to_coco(read_data_yaml(folder / "data.yaml"), "train")
    assert len(content["annotations"]) == 1


def test_folders_that_are_links_are_followed(yolo, tmp_path):
    given = yolo("0 0.5 0.5 1 1", name="deep/b")
    (tmp_path / "images/deep").rename(tmp_path / "elsewhere")
    (tmp_path / "images/deep").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path)  # has no end
    content, _ = yolo_to_coco(given, "train")
    assert [x["file_name"] for x in content["images"]] == ["b.jpg"]
    assert len(content["annotations"]) == 1


@pytest.mark.parametrize(
    "line",
    [
        "2 0.5 0.5 1 1",
        "0.5 0.5 0.5 1 1",
        "0 0.5 0.5 1",
        "cat 0 0 1 1",
        "0 1 1 1 1 1 1 1",
        "0 nan 0 1 1",
    ],
)
def test_a_line_that_is_none_is_told(yolo, line):
    with pytest.raises(UserError, match=r"a\.txt, line 2, is .*: write a class from 0 to 1"):
        yolo_to_coco(yolo(f"0 0.5 0.5 1 1\n{line}"), "train")


def test_a_file_that_is_no_text_is_told(yolo, tmp_path):
    given = yolo("0 0.5 0.5 1 1")
    (tmp_path / "labels/a.txt").write_bytes(b"0 0.5 0.5 1 1\n\x89PNG\xff")
    with pytest.raises(UserError, match=r"a\.txt, line 2, is .*: write a class from 0 to 1"):
        yolo_to_coco(given, "train")
    (tmp_path / "list.txt").write_bytes(b"images/\xff.jpg")
    listed = given._replace(splits={"train": ["list.txt"]})
    with pytest.raises(UserError, match=r"images/\ufffd\.jpg"):
        yolo_to_coco(listed, "train")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images\n", "has no list of classes under 'names'"),
        ("train: images\nnames: {1: a}\n", "has no list of classes under 'names'"),
        ("names: [a]\n", "names no images under 'train'"),
        ("train: gone\nnames: [a]\n", "names gone under 'train', which is neither"),
        ("train: labels\nnames: [a]\n", "names no images under 'train'"),
    ],
)
def test_a_data_yaml_that_lacks_something_is_told(yolo, yaml, message):
    with pytest.raises(UserError, match=message):
        yolo_to_coco(yolo(yaml=yaml), "train")

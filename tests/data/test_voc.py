"""Pascal VOC's files; that they agree with Detectron2's reader is tested with the example's."""

import pytest

from dpk_det.data.voc import voc_files, voc_to_coco
from dpk_det.errors import UserError

XML = """<annotation><filename>{name}.jpg</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>{label}</name>{flags}
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def xml(tmp_path):
    """``xml(1, 1, 40, 30)`` writes one file with that box, and returns all there are."""

    def write(*box, name="a", label="cat", flags="", change=("", "")):
        text = XML.format(*box, name=name, label=label, flags=flags).replace(*change)
        (tmp_path / f"{name}.xml").write_text(text)
        return voc_files(tmp_path)

    return write


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        ((1, 1, 40, 30), [0, 0, 40, 30]),  # the whole image
        ((5, 6, 5, 6), [4, 5, 1, 1]),  # one pixel
        ((0, 0, 50, 50), [0, 0, 40, 30]),  # beyond the image
        ((2.5, 3, 10.5, 8), [1.5, 2, 9, 6]),
    ],
)
def test_corners_count_pixels_from_one(xml, corners, box):
    (found,) = voc_to_coco(xml(*corners), ["dog", "cat"])["annotations"]
    assert found["bbox"] == box and found["category_id"] == 2
    assert found["area"] == box[2] * box[3]


@pytest.mark.parametrize(
    ("flags", "keep", "crowd"),
    [
        ("", False, 0),
        ("<difficult>0</difficult><truncated>1</truncated>", False, 0),
        ("<difficult>False</difficult>", False, 0),
        ("<difficult>1</difficult>", False, 1),
        ("<difficult>True</difficult>", False, 1),
        ("<difficult>1</difficult>", True, 0),
    ],
)
def test_difficult_objects_are_crowds(xml, flags, keep, crowd):
    (found,) = voc_to_coco(xml(1, 1, 9, 9, flags=flags), ["cat"], keep)["annotations"]
    assert found["iscrowd"] == crowd


def test_without_classes_they_are_those_of_the_files(xml):
    xml(1, 1, 9, 9, name="b", label="ant")
    content = voc_to_coco(xml(1, 1, 9, 9))
    assert content["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert [x["category_id"] for x in content["annotations"]] == [2, 1]
    assert [x["file_name"] for x in content["images"]] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("box", "change", "message"),
    [
        ((9, 1, 8, 9), ("", ""), "box of a cat that is empty"),
        ((50, 1, 60, 9), ("", ""), "box of a cat that is empty"),
        ((1, 1, "nan", 9), ("", ""), "box of a cat that is empty"),
        ((1, 1, 9, 9), ("<name>cat", "<name>cow"), "has the class 'cow', which is none of cat"),
        ((1, 1, 9, 9), ("<width>40", "<width>0"), "gives a size of 0 x 30"),
        ((1, 1, 9, "x"), ("", ""), "has 'x' as bndbox/ymax"),
        ((1, 1, 9, 9), ("<filename>a.jpg</filename>", ""), "has no filename in its annotation"),
        ((1, 1, 9, 9), ("</annotation>", ""), "cannot be read"),
    ],
)
def test_a_bad_file_is_named(xml, box, change, message):
    with pytest.raises(UserError, match=rf"a\.xml .*{message}"):
        voc_to_coco(xml(*box, change=change), ["cat"])


def test_an_empty_folder_and_a_list_that_is_absent_are_told(tmp_path):
    with pytest.raises(UserError, match="no XML files"):
        voc_files(tmp_path)
    with pytest.raises(UserError, match=r"gone\.txt cannot be read"):
        voc_files(tmp_path, tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a -1", "a"),  # a list of one class
        ("a  1", "a"),
        ("a\t0", "a"),
        ("photo 1", "photo 1"),
        ("  photo 1\r", "photo 1"),
        ("photo 1 -1", "photo 1"),
        ("photo (1)", "photo (1)"),
        ("photo 2", "photo 2"),  # there is none, and photo is another
        ("\ufeffa", "a"),  # as Windows writes it
        ("für", "für"),
    ],
)
def test_a_list_names_files(tmp_path, line, name):
    for there in ("a", "photo", "photo 1"):
        (tmp_path / f"{there}.xml").touch()
    (tmp_path / "list.txt").write_text(f"{line}\n\nb\n", "utf-8")
    found = voc_files(tmp_path, tmp_path / "list.txt")
    assert found == [tmp_path / f"{name}.xml", tmp_path / "b.xml"]

"""What a COCO JSON file may hold: each mistake is a sentence that names file, entry and field."""

import json

import pytest

from dpk_det.data.coco_format import Categories, read_coco
from dpk_det.errors import UserError

CODE = {"size": [30, 40], "counts": [1200]}


@pytest.fixture
def read(tmp_path):
    """``read(content)`` of a file that holds it; bytes and text as they are."""

    def read(content, kind=None):
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        path = tmp_path / "pets.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_coco(str(path), *filter(None, [kind]))

    return read


ALLOWED = [
    ("images", "id", "one"),
    ("images", "id", -3),
    ("images", "licence", None),
    ("annotations", "bbox", [0.5, 1, 2, 0]),
    ("annotations", "area", None),
    ("annotations", "area", 0),
    ("annotations", "iscrowd", 1),
    ("annotations", "iscrowd", False),
    ("annotations", "segmentation", []),
    ("annotations", "segmentation", None),
    ("annotations", "segmentation", [[1, 2, 3, 4, 5, 6.5]]),
    ("annotations", "segmentation", CODE),
    ("annotations", "segmentation", {"size": [30, 40], "counts": "00"}),
    ("annotations", "keypoints", [1, 2, 2]),
    ("annotations", "attributes", {"a": [{"b": None}]}),
    ("categories", "id", 0),
    ("categories", "supercategory", None),
]


@pytest.mark.parametrize(("name", "field", "value"), ALLOWED)
def test_what_is_allowed(content, read, name, field, value):
    content[name][1][field] = value
    assert len(getattr(read(content), name)) == 2


@pytest.mark.parametrize(
    ("name", "field"),
    [("annotations", x) for x in ("area", "iscrowd", "segmentation", "keypoints")],
)
def test_what_may_be_absent(content, read, name, field):
    content[name][1].pop(field, None)
    read(content)
    del content["annotations"]
    read(content)


REFUSED = {
    ("images", "id"): [None, True, 1.0, 1.5, [1], {}, 2**63],
    ("images", "file_name"): [None, "", 3, ["1.png"]],
    ("images", "height"): [None, 0, -30, "30", 30.5, True, [30], 2**40],
    ("images", "width"): [None, 0, "40", {}, 1e3],
    ("annotations", "id"): [None, "1", 1.5, True, -1, 2**70],
    ("annotations", "image_id"): [None, True, 1.0, [1]],
    ("annotations", "category_id"): [None, "1", True, 1.0, -1, 2**64, [1]],
    ("annotations", "bbox"): [
        *(None, "1 2 3 4", [], [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2, 3, 4]]),
        *([None, 2, 3, 4], ["1", 2, 3, 4], [True, 2, 3, 4], {"x": 1}),
    ],
    ("annotations", "area"): ["126", True, [1], -1],
    ("annotations", "iscrowd"): [None, 2, -1, "0", [0], 1.0, {}],
    ("annotations", "segmentation"): [
        *("", True, 3, {}, [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5, None]], [["1"]], [{}]),
        *({"size": [30, 40]}, {"counts": [1200]}, {"size": [30], "counts": [30]}),
        *({**CODE, "size": None}, {**CODE, "size": [0, 40]}, {**CODE, "counts": [-1]}),
        *({**CODE, "counts": None}, {**CODE, "counts": [1.5]}, {**CODE, "size": [30.0, 40.0]}),
    ],
    ("annotations", "keypoints"): ["", {}, [[1, 2, 2]], [None], 3],
    ("annotations", "num_keypoints"): ["1", -1, 1.5, True],
    ("categories", "id"): [None, "1", True, 1.0, -1, 2**64],
    ("categories", "name"): [None, "", 3, ["pet"]],
}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [(*key, value) for key, values in REFUSED.items() for value in values],
)
def test_a_mistake_is_a_sentence_that_names_file_entry_and_field(
    content, read, name, field, value, tmp_path
):
    content[name][1][field] = value
    with pytest.raises(UserError) as error:
        read(content)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'pets.json'}: {name}[1], {{")
    assert f"}}, has the {field} {json.dumps(value, separators=(',', ':'))}: give " in text
    assert text.count("\n") == 0 and text.endswith(".")


REQUIRED = [("images", x) for x in ("id", "file_name", "height", "width")]
REQUIRED += [("annotations", x) for x in ("id", "image_id", "category_id", "bbox")]
REQUIRED += [("categories", x) for x in ("id", "name")]


@pytest.mark.parametrize(("name", "field"), REQUIRED)
def test_a_field_that_is_absent(content, read, name, field):
    del content[name][0][field]
    with pytest.raises(UserError, match=rf"{name}\[0\], .* has no '{field}': add "):
        read(content)


def test_a_long_value_is_cut_off(content, read):
    content["annotations"][0]["segmentation"] = [[0.5] * 1000, ["x"]]
    with pytest.raises(UserError, match=r"annotations\[0\]") as error:
        read(content)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", [None, {}, "x", 3])
@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_a_list_that_is_none(content, read, name, value):
    content[name] = value
    with pytest.raises(UserError, match="is not in COCO's JSON format"):
        read(content)
    content[name] = [3]
    with pytest.raises(UserError, match=rf"{name}\[0\] is 3: give an entry with its fields"):
        read(content)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"images"', "{}", '{"images": []}'])
def test_another_json(read, text):
    with pytest.raises(UserError, match="is not in COCO's JSON format"):
        read(text)


WHOLE = '{"images": [{"id": 1, "file_name": "é", "height": 3, "width": 4}], "categories": []}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "truncated"),
        ("{", "truncated"),
        (WHOLE[:60], "truncated"),
        (WHOLE + "x", "trailing"),
        ("{'images': []}", "malformed"),
        ("\0" * 9, "malformed"),
        (b"\x80\x04\x95", "malformed"),
        (b"\xef\xbb\xbf" + WHOLE.encode(), "byte order mark: save it without"),
        (WHOLE.encode("utf-16"), "malformed"),
        (WHOLE.encode("latin-1"), "save it as UTF-8"),
        (WHOLE.replace("3", "NaN"), "NaN or infinity at byte .*write numbers"),
        (WHOLE.replace("3", "-Infinity"), "NaN or infinity at byte"),
        (WHOLE.replace("3", "1e999"), "has the height 1e999|out of range"),
        ('{"images": ' + "[" * 100000, "nested too deeply|no JSON"),
        ('{"info": ' + '{"a": ' * 100000, "nested too deeply"),
    ],
)
def test_what_is_no_json(read, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_no_categories(content, read):
    content["categories"] = []
    with pytest.raises(UserError, match="lists no categories: name the classes"):
        read(content)


def test_an_absent_file(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the annotation file .*No such file.*correct"):
        read_coco(str(tmp_path / "gone.json"))
    with pytest.raises(UserError, match="Cannot read the annotation file"):
        read_coco(str(tmp_path))


def test_less_may_be_read(content, read):
    content["annotations"] = content["images"] = "whatever"
    assert [x.name for x in read(content, Categories).categories] == ["pet1", "pet2"]

"""Reading config files: none runs code, and what is wrong with one is said in a sentence."""

import pytest

from dpk_det.config.files import read_config_file
from dpk_det.errors import UserError

EVIL = "DATALOADER:\n  NUM_WORKERS: !!python/object/apply:os.mkdir ['{folder}']\n"


def write(folder, text, name="c.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_file_stands_on_its_bases(tmp_path):
    write(tmp_path, "A: {B: 1, C: 2}\nD: 3\n", "one.yaml")
    write(tmp_path, "A: {C: 4}\n", "two.yaml")
    path = write(tmp_path, "_BASE_: [one.yaml, two.yaml]\nD: (5, 6)\n")
    assert read_config_file(path) == {"A": {"B": 1, "C": 4}, "D": "(5, 6)"}


@pytest.mark.parametrize("place", ["file", "base"])
def test_a_tag_is_refused_and_runs_no_code(tmp_path, place):
    made = tmp_path / "made"
    path = write(tmp_path, EVIL.format(folder=made))
    if place == "base":
        path = write(tmp_path, "_BASE_: c.yaml\n", "top.yaml")
    with pytest.raises(
        UserError, match=r"the tag !!python/object/apply:os\.mkdir .*c\.yaml\", line 2"
    ):
        read_config_file(path)
    assert not made.exists()


def test_the_model_zoo_that_is_installed_with_detectron2_may_compute_its_anchors(tmp_path):
    from detectron2 import model_zoo

    zoo = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    path = write(tmp_path, f"_BASE_: {zoo}\n")
    assert len(read_config_file(path)["MODEL"]["ANCHOR_GENERATOR"]["SIZES"]) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"c\.yaml holds no KEY: VALUE lines"),
        ("- 1\n", r"c\.yaml holds no KEY: VALUE lines"),
        ("A: {B: 1\n", r"The config .*c\.yaml is no YAML"),
        ("A: 1\nB: 2\nA: 3\n", r"the key 'A' stands twice in .*c\.yaml\", line 3"),
        ("A: {1: 2}\n", r"c\.yaml holds the key 1, which YAML takes for no text"),
        ("A: .nan\n", r"c\.yaml holds the number nan"),
        ("_BASE_: c.yaml\n", "is a _BASE_ of itself"),
        ("_BASE_: gone.yaml\n", r"gone\.yaml cannot be read"),
        ("_BASE_: 3\n", "cannot be read"),
        ("_BASE_: base.yaml\nA: {B: 1}\n", "Cannot inherit key 'A'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(tmp_path, text, message):
    write(tmp_path, "A: 1\n", "base.yaml")
    with pytest.raises(UserError, match=message):
        read_config_file(write(tmp_path, text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\x89PNG\x00\xff\xfe")
    with pytest.raises(UserError, match=r"c\.yaml is no YAML"):
        read_config_file(str(tmp_path / "c.yaml"))

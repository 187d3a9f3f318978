"""YAML files that mean one thing."""

import pytest

from dpk_det.config.strict_yaml import read_yaml
from dpk_det.errors import UserError

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.fixture
def read(tmp_path):
    """Reads a file of this content."""

    def read(content):
        path = tmp_path / "file.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_yaml(path, "suite")

    return read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", r"The suite .*file\.yaml is no YAML \(.*line 1"),
        ("a: 1\nb: 2\na: 3", r"is no YAML \(the key 'a' stands twice in \".*file.yaml\", line 3"),
        ("x: {a: 1, b: {c: 1, 'c': 2}}", r"the key 'c' stands twice"),
        (
            "a: !!python/object/apply:os.system ['false']",
            r"no YAML \(the tag !!python/\S+system is",
        ),
        ("a: !mine 3", r"no YAML \(the tag !mine is"),
        ("? {a: 1}\n: 2", r"no YAML \(.*unhashable"),
        ("[" * 5000, r"is nested too deeply"),
        ("a: &a [*a]", r"refers to itself"),
        (BOMB, r"refers to itself, or its aliases stand for more than 20,000 values"),
        ("a: .nan", r"holds the number nan: write a finite one"),
        ("a: [-.inf]", r"holds the number -inf: write a finite one"),
        ("a: 2020-01-01", r"holds datetime\.date\(2020, 1, 1\), which YAML takes for a date"),
        ("a: 2020-99-99", r"is no YAML \(month must be in 1\.\.12"),
        ("a: !!set {x, y}", r"which YAML takes for a set"),
        ("a: !!binary aGVsbG8=", r"which YAML takes for a bytes"),
        (b"\x89PNG\x00\xff\xfe", r"is no YAML"),
        (b"a: \xff", r"is no YAML"),
        (b"\x00" * 64, r"is no YAML"),
        ("a: " + "9" * 5000, r"is no YAML"),
    ],
)
def test_what_does_not_mean_one_thing_is_refused(read, content, message):
    with pytest.raises(UserError, match=message) as error:
        read(content)
    assert "\n" not in str(error.value)


def test_anchors_and_merging_do_as_they_should(read):
    content = read("base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\nagain: *base")
    assert content == {"base": {"a": 1, "b": 2}, "mine": {"a": 1, "b": 3}, "again": content["base"]}


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path, "suite")

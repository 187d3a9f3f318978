import os

import pytest

from dpk_det.errors import UserError
from dpk_det.files import whole_file, write_whole


def test_a_file_is_written_with_its_folder_and_nothing_stays_beside_it(tmp_path):
    write_whole(tmp_path / "new/report.md", "text")
    assert (tmp_path / "new/report.md").read_text() == "text"
    write_whole(tmp_path / "new/report.md", b"bytes")
    assert (tmp_path / "new/report.md").read_bytes() == b"bytes"
    assert os.listdir(tmp_path / "new") == ["report.md"]


def test_until_the_end_the_old_file_stands(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    with whole_file(path) as partial:
        assert partial.suffix == ".png" and partial.parent == tmp_path
        partial.write_text("half")
        assert path.read_text() == "old"
    assert path.read_text() == "half"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), whole_file(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_ends_in_a_sentence(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UserError, match=r"a.txt could not be written \(No space left on device\)"):
        with whole_file(path) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_made_ends_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_whole(tmp_path / "file/a.txt", "text")

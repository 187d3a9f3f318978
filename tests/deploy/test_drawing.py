"""Drawings are whole or absent, in places of their own."""

import os

import numpy as np
import pytest

from dpk_det.deploy.drawing import Drawing, drawing_paths, paint_classes
from dpk_det.deploy.inputs import FileError
from dpk_det.errors import UserError


@pytest.mark.parametrize(("name", "fps"), [("a.png", None), ("a.mp4", 5.0)])
def test_an_exception_leaves_no_drawing(tmp_path, name, fps):
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(KeyboardInterrupt), Drawing(tmp_path / name, fps) as drawing:
        if fps:
            drawing.write(image)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with Drawing(tmp_path / name, fps) as drawing:
        drawing.write(image)
    assert os.listdir(tmp_path) == [name]


def test_what_opencv_cannot_write_is_an_error_of_its_file(tmp_path):
    with (
        pytest.raises(FileError, match="OpenCV cannot write"),
        Drawing(tmp_path / "a.x", None) as x,
    ):
        x.write(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(FileError, match="OpenCV cannot write"):
        with Drawing(tmp_path / "a.jpg", None) as x:
            x.write(np.zeros((1, 70_000, 3), np.uint8))
    assert os.listdir(tmp_path) == []


def test_drawings_lie_below_a_folder_as_their_inputs_do_and_videos_become_mp4(tmp_path):
    names = ("x.png", "a/x.png", "clip.MP4", "b.avi", "b.avi.mp4")
    files = [tmp_path / name for name in names]
    out = tmp_path / "out"
    found = [x.relative_to(out).as_posix() for x in drawing_paths(files, tmp_path, out)]
    assert found == ["x.png", "a/x.png", "clip.MP4.mp4", "b.avi.mp4.mp4", "b.avi.mp4"]


def test_a_drawing_in_the_place_of_an_input_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match="would replace the input .*x.png: choose another --output"):
        drawing_paths([tmp_path / "x.png"], tmp_path, tmp_path / "link")


def test_classes_are_written_into_the_corner_of_an_image_that_is_large_enough():
    image = np.full((300, 400, 3), (30, 120, 210), np.uint8)
    drawn = paint_classes(image, ["disc 90%", "square 10%"])
    assert drawn.shape == image.shape
    assert (drawn[150:] == image[150:]).all() and (drawn[:60, :100] != image[:60, :100]).any()
    assert np.array_equal(paint_classes(image, []), image)
    assert paint_classes(image[:10, :100], ["disc 90%"]).shape == (240, 2400, 3)

"""Inputs are found, and images read as they look."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dpk_det.deploy.inputs import FileError, find_inputs, frames_per_second, read, scale_to_8_bits
from dpk_det.errors import UserError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
GREY = np.round(255 * RAMP).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_are_shown_as_they_look(tmp_path, name):
    Image.fromarray(np.round(65535 * RAMP).astype(np.uint16)).save(tmp_path / name)
    image = read(tmp_path / name)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert all(np.array_equal(image[:, :, i], GREY) for i in range(3))


def test_16_bits_in_colour_keep_their_channels(tmp_path):
    values = np.stack([RAMP, RAMP / 2, RAMP / 3], 2)
    cv2.imwrite(str(tmp_path / "a.png"), np.round(65535 * values).astype(np.uint16))
    assert abs(read(tmp_path / "a.png") - 255 * values).max() <= 1


@pytest.mark.parametrize("low_high", [(0, 1), (0, 255), (-3, 500)])
def test_floats_are_shown_within_their_range(tmp_path, low_high):
    low, high = low_high
    Image.fromarray((low + (high - low) * RAMP).astype(np.float32)).save(tmp_path / "a.tiff")
    assert abs(read(tmp_path / "a.tiff")[:, :, 0].astype(int) - GREY).max() <= 1


def test_what_values_may_be_tells_the_scale():
    def scaled(values, dtype):
        return scale_to_8_bits(np.array(values, dtype)).tolist()

    nan, inf = float("nan"), float("inf")
    assert scaled([0, 0.5, 0.8], float) == [0, 128, 204]
    assert scaled([0, 100.4, 200], float) == [0, 100, 200]
    assert scaled([0, 1000], float) == [0, 255]
    assert scaled([-1, 0, 1], float) == [0, 128, 255]
    assert scaled([nan, inf, -inf, 0.2], float) == [0, 255, 0, 51]
    assert scaled([nan, nan], float) == [0, 0]
    assert scaled([0, 7], np.uint16) == [0, 0] and scaled([257, 65535], np.uint16) == [1, 255]
    assert scaled([0, 200], np.int32) == [0, 200] and scaled([257, 2570], np.int32) == [1, 10]
    assert scaled([5, 100_000], np.int32) == [0, 255] and scaled([-5, -5], np.int32) == [0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_other_kinds_are_what_they_look_like(tmp_path, mode):
    name = "a.tif" if mode == "CMYK" else "a.png"
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(tmp_path / name)
    assert read(tmp_path / name).tolist() == np.full((4, 6, 3), 255).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_are_turned_as_their_exif_tag_says(tmp_path, dtype):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = (np.arange(6).reshape(2, 3) * (40 if dtype == np.uint8 else 40 * 257)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png")[:, :, 0].tolist() == [[120, 0], [160, 40], [200, 80]]


def test_damaged_images_are_errors_of_their_file(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "whole.png")
    Image.fromarray(GREY).save(tmp_path / "whole.tif")
    for name in ("whole.png", "whole.tif"):
        data = (tmp_path / name).read_bytes()
        for length in range(0, len(data) - 16, 7):
            (tmp_path / f"half-{name}").write_bytes(data[:length])
            with pytest.raises(FileError, match="no readable image: ."):
                read(tmp_path / f"half-{name}")


def test_a_video_without_a_rate_has_25_frames_a_second(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    assert frames_per_second(tmp_path / "a.mp4") == 25


def test_inputs_are_files_folders_and_globs_each_file_once(tmp_path):
    for name in ("a.png", "b.JPG", "c.mp4", "notes.txt", "deep/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*inputs):
        return [x.relative_to(tmp_path).as_posix() for x in find_inputs(inputs)]

    assert names(str(tmp_path)) == ["a.png", "b.JPG", "c.mp4"]
    assert names(f"{tmp_path}/*.png", f"{tmp_path}/deep") == ["a.png", "deep/d.webp"]
    assert names(f"{tmp_path}/c.mp4", str(tmp_path)) == ["c.mp4", "a.png", "b.JPG"]
    assert names(f"{tmp_path}/**") == ["a.png", "b.JPG", "c.mp4", "deep/d.webp"]
    for odd in ("", "~nobody/here", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="The input .* (cannot be looked at|is no image)"):
            find_inputs([odd])
    for nothing in ("gone.png", "*.gif", "notes.txt", ""):
        with pytest.raises(UserError, match="is no image, video, folder or glob"):
            find_inputs([str(tmp_path / "a.png"), str(tmp_path / "empty" / nothing)])
    with pytest.raises(UserError, match="notes.txt is no image"):
        find_inputs([str(tmp_path / "notes.txt")])

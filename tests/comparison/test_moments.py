"""The pictures of a training's snapshots."""

import base64

import cv2
import numpy as np
import pytest

from dpk_det.comparison.moments import read_moments, where_given


def write(folder, step, **changed):
    content = {
        "image": np.full((40, 60, 3), 200, np.uint8),
        "p2/student": np.zeros((10, 15, 3), np.uint8),
        "p2/completed": np.full((10, 15, 3), 100, np.uint8),
        "p2/teacher": np.random.default_rng(0).integers(0, 255, (10, 15, 3), np.uint8),
        "p2/given": np.arange(6).reshape(2, 3) % 2 == 0,
        "p2/token": np.float32(24.0),
        "p2/ratio": np.float32(0.5),
        "p3/given": np.ones((2, 3), bool),
    }
    (folder / "snapshots").mkdir(exist_ok=True)
    np.savez_compressed(folder / "snapshots" / f"{step}.npz", **content | changed)
    return content


def pixels(source):
    data = np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def test_moments_are_in_order_and_at_the_finest_level(tmp_path):
    content = write(tmp_path, 20)
    write(tmp_path, 3)
    write(tmp_path, 100)
    moments = read_moments(tmp_path)
    assert [moment.step for moment in moments] == [3, 20, 100]
    moment = moments[1]
    assert moment.level == "p2" and moment.ratio == 0.5
    prior, student, completed, teacher = map(pixels, moment.pictures.values())
    assert np.array_equal(student, content["p2/student"])
    assert np.array_equal(completed, content["p2/completed"])
    assert np.array_equal(teacher, content["p2/teacher"])
    # tokens of 24 pixels: bright, dark, bright; dark, bright, dark
    for (row, column), bright in zip(
        [(5, 5), (5, 30), (5, 55), (30, 5), (30, 30), (30, 55)], [1, 0, 1, 0, 1, 0], strict=True
    ):
        assert prior[row, column].mean() == pytest.approx(200 if bright else 50, abs=4)


def test_the_last_token_reaches_beyond_the_image():
    shown = where_given(np.array([[True, False]]), 16.0, (10, 20))
    assert shown.shape == (10, 20, 1)
    assert (shown[:, :16] == 1).all() and (shown[:, 16:] < 1).all()


def test_what_is_damaged_or_absent_is_left_out(tmp_path):
    assert read_moments(tmp_path) == []
    write(tmp_path, 3)
    path = tmp_path / "snapshots" / "3.npz"
    (tmp_path / "snapshots" / "4.npz").write_bytes(path.read_bytes()[:200])
    (tmp_path / "snapshots" / "5.npz").write_bytes(b"")
    np.savez(tmp_path / "snapshots" / "7.npz", image=np.zeros(3))
    assert [moment.step for moment in read_moments(tmp_path)] == [3]

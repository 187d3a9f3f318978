import os
from pathlib import Path

import pytest

from dpk_det.comparison.suite import read_suite
from dpk_det.config.loading import load_config
from dpk_det.config.shipped import CONFIGS, find_config
from dpk_det.errors import UserError
from dpk_det.pairing.teacher import load_teacher_config


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_projects_configs_are_found_from_any_folder(tmp_path):
    name = "configs/shapes/plain.yaml"
    assert find_config(name) == str(CONFIGS / "shapes" / "plain.yaml")
    assert load_config(name).MODEL.SMALL_RESNET.WIDTHS == [16, 32, 64]
    assert load_teacher_config("configs/shapes/teacher.yaml").SOLVER.MAX_ITER == 1200
    assert read_suite(Path("configs/compare/demo.yaml")).methods


def test_a_file_of_ones_own_comes_first(tmp_path):
    own = tmp_path / "configs" / "shapes" / "plain.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 7\nVERSION: 2\n")
    assert find_config("configs/shapes/plain.yaml") == "configs/shapes/plain.yaml"
    assert load_config("configs/shapes/plain.yaml").SEED == 7


@pytest.mark.parametrize(
    "name", ["configs", "configs/", "configs/no.yaml", "shapes/plain.yaml", "", "a\0b", "x" * 5000]
)
def test_other_names_stay_as_they_are(name):
    assert find_config(name) == name


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_config("~/my.yaml") == os.path.join(tmp_path, "my.yaml")


def test_an_absent_file_is_told_as_it_was_named():
    with pytest.raises(UserError, match=r"no config file configs/shapes/plane\.yaml"):
        load_config("configs/shapes/plane.yaml")

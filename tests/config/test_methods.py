"""What a config says of methods."""

import pytest
import yaml

from dpk_det.config.loading import load_config
from dpk_det.config.methods import comparable, method_arguments
from dpk_det.distill import DISTILLERS, Level, build_distiller
from dpk_det.errors import UserError


@pytest.mark.parametrize("name", sorted(DISTILLERS))
def test_every_method_builds_from_the_config_by_its_name(name):
    cfg = load_config("", ["DISTILL.METHODS", f"['{name}']", "DISTILL.DPK.DIM", "16"])
    levels = [Level("p3", "q3", 8, 4, 6)]
    (method,) = build_distiller(method_arguments(cfg), levels).methods.values()
    assert type(method) is DISTILLERS[name] and method.levels == levels


def test_several_methods_take_their_arguments_each_from_its_own_node():
    cfg = load_config("", ["DISTILL.METHODS", "['kd', 'cwd']", "DISTILL.CWD.TEMPERATURE", "4.0"])
    arguments = method_arguments(cfg)
    assert list(arguments) == ["kd", "cwd"]
    assert arguments["cwd"]["temperature"] == 4 and arguments["kd"]["temperature"] == 1


@pytest.mark.parametrize(
    ("methods", "message"),
    [("['dpk', 'kd', 'dpk']", "names dpk twice"), ("[1]", r"is \[1\]: write a list of names")],
)
def test_methods_are_names_each_once(methods, message):
    with pytest.raises(UserError, match=f"DISTILL.METHODS {message}"):
        method_arguments(load_config("", ["DISTILL.METHODS", methods]))


def test_a_method_may_have_levels_of_its_own():
    cfg = load_config("", ["DISTILL.METHODS", "['pkd', 'kd']", "DISTILL.PKD.LEVELS", "['p4']"])
    arguments = method_arguments(cfg)
    assert arguments["pkd"]["levels"] == ["p4"] and "levels" not in arguments["kd"]


def settled(*opts):
    return comparable(yaml.safe_load(load_config("", opts).dump()))


def test_configs_of_one_meaning_are_comparable_whatever_form_they_have():
    written = ["SHORTCUT", "True", "TARGET", "standard", "GROUPED", "True", "CKA_EVERY", "4"]
    written += ["ENCODER_DEPTH", "0"]
    written = [f"DISTILL.DPK.{x}" if i % 2 == 0 else x for i, x in enumerate(written)]
    assert settled() == settled(*written)
    paper = settled("DISTILL.DPK.FORM", "paper")
    differ = {key for key, value in settled().items() if paper[key] != value}
    assert differ == {
        f"DISTILL.DPK.{x}"
        for x in ("FORM", "SHORTCUT", "TARGET", "GROUPED", "CKA_EVERY", "ENCODER_DEPTH")
    }


def test_a_folder_of_an_earlier_version_is_comparable():
    content = yaml.safe_load(load_config("").dump())
    node = content["DISTILL"]["DPK"]
    node |= {"SHORTCUT": True, "TARGET": "standard", "GROUPED": True, "CKA_EVERY": 4}
    node |= {"ENCODER_DEPTH": 0}
    del node["FORM"]
    assert comparable(content) | {"DISTILL.DPK.FORM": "shortcut"} == settled()

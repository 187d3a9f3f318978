"""Reading configs: overrides, imports, and errors that name the nearest key."""

import pytest

from dpk_det.config.loading import load_config
from dpk_det.errors import UserError


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\nDISTILL:\n  TEACHER:\n    CONFIGFILE: x.yaml\n")
    with pytest.raises(
        UserError,
        match=r"DISTILL\.TEACHER\.CONFIGFILE \(in .*c\.yaml\): "
        r"did you mean DISTILL\.TEACHER\.CONFIG_FILE\?",
    ):
        load_config(str(path))


def test_an_unknown_key_on_the_command_line_is_answered_with_the_nearest():
    with pytest.raises(
        UserError,
        match=r"DISTILL\.DPK\.WIEGHT \(on the command line\): did you mean DISTILL\.DPK\.WEIGHT\?",
    ):
        load_config("", ["DISTILL.DPK.WIEGHT", "2.0"])


def test_a_key_like_no_other_is_answered_without_a_guess():
    with pytest.raises(UserError, match=r"no config key QQQQ \(on the command line\): take it out"):
        load_config("", ["QQQQ", "1"])


def test_an_override_without_a_value_is_refused():
    with pytest.raises(UserError, match="write KEY VALUE KEY VALUE"):
        load_config("", ["SEED"])


@pytest.mark.parametrize(
    ("key", "value", "kinds"),
    [
        ("DISTILL.DPK.DIM", "wide", "a whole number, not a text"),
        ("DISTILL.DPK.DIM", "2.5", "a whole number, not a number"),
        ("DISTILL.DPK.PRIOR", "1", "True or False, not a whole number"),
        ("SOLVER.BASE_LR", "fast", "a number, not a text"),
        ("DISTILL.METHODS", "dpk", "a list, not a text"),
        ("DISTILL", "dpk", "keys below it, not a text"),
        ("SEED", "{}", "a whole number, not dict"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_the_name_of_its_key(key, value, kinds):
    with pytest.raises(UserError, match=rf"^{key} \(on the command line\) takes {kinds}: correct"):
        load_config("", [key, value])


def test_a_whole_number_does_for_a_key_that_takes_any_number(tmp_path):
    (tmp_path / "base.yaml").write_text("DISTILL: {DPK: {WEIGHT: 50}, CWD: {WEIGHT: '33'}}\n")
    path = tmp_path / "c.yaml"
    path.write_text("_BASE_: base.yaml\nSOLVER: {BASE_LR: 1}\n")
    cfg = load_config(str(path), ["DISTILL.PKD.WEIGHT", "48", "MODEL.RPN.NMS_THRESH", "1"])
    values = cfg.DISTILL.DPK.WEIGHT, cfg.DISTILL.CWD.WEIGHT, cfg.DISTILL.PKD.WEIGHT
    assert values == (50.0, 33.0, 48.0)
    assert cfg.SOLVER.BASE_LR == 1.0 and cfg.MODEL.RPN.NMS_THRESH == 1.0
    assert all(type(value) is float for value in (*values, cfg.SOLVER.BASE_LR))
    assert type(load_config("", ["SOLVER.MAX_ITER", "5"]).SOLVER.MAX_ITER) is int


def test_a_config_of_detectron2s_first_version_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 1\n")
    with pytest.raises(UserError, match=r"VERSION is 1 \(in .*c\.yaml\).* of version 2"):
        load_config(str(path))


def test_a_config_of_an_earlier_version_is_read_where_it_means_what_is_so_now(tmp_path):
    path = tmp_path / "c.yaml"
    old = (
        "MODEL: {TORCHVISION: {NAME: '', KWARGS: {}}}\n"
        "DISTILL: {DPK: {RATIO_MAX: %s}}\nVERSION: 2\n"
    )
    path.write_text(old % "1.0")
    assert load_config(str(path)) == load_config("")
    path.write_text(old % "0.5")
    with pytest.raises(UserError, match=r"no config key DISTILL\.DPK\.RATIO_MAX \(in .*c\.yaml\)"):
        load_config(str(path))


def test_an_absent_file_is_named():
    with pytest.raises(UserError, match=r"no config file not/here\.yaml: .*--config-file"):
        load_config("not/here.yaml")


@pytest.mark.parametrize("value", ["9" * 400, "(" * 300, "{[]: 1}"])
def test_a_value_that_python_cannot_read_is_refused(value):
    with pytest.raises(UserError, match="on the command line"):
        load_config("", ["DISTILL.DPK.WEIGHT", value])


def test_a_suite_is_told_from_a_config():
    with pytest.raises(UserError, match="key title .*: it belongs to a suite, which dpk-det"):
        load_config("configs/compare/demo.yaml")

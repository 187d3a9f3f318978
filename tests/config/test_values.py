"""Values of config keys that cannot be meant are refused by the key's name."""

from pathlib import Path

import pytest

from dpk_det.config.loading import load_config
from dpk_det.config.methods import check_distillation, unused_keys
from dpk_det.config.values import check_channels
from dpk_det.errors import UserError


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("SOLVER.IMS_PER_BATCH", "0", "a whole number from 1"),
        ("SOLVER.CHECKPOINT_PERIOD", "0", "a whole number from 1"),
        ("SOLVER.MAX_ITER", "-5", "a whole number from 1"),
        ("SOLVER.BASE_LR", "-0.1", "a number from 0"),
        ("SOLVER.BASE_LR", "1e999", "a number from 0"),
        ("SOLVER.BASE_LR", "None", "a number from 0"),
        ("SOLVER.MOMENTUM", "1.5", "a number from 0 to below 1"),
        ("SOLVER.GAMMA", "0", "a number above 0"),
        ("SOLVER.STEPS", "(-1,)", "a list, of which each is a whole number from 1"),
        ("SOLVER.STEPS", "(1.5,)", "a list, of which each is a whole number"),
        ("SOLVER.WARMUP_ITERS", "-1", "a whole number from 0"),
        ("SOLVER.WARMUP_METHOD", "exponential", "one of 'constant', 'linear'"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norms", "one of 'norm', 'value'"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0", "a number above 0"),
        ("TEST.EVAL_PERIOD", "-1", "a whole number from 0"),
        ("TEST.DETECTIONS_PER_IMAGE", "0", "a whole number from 1"),
        ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP']]", "a list, of which each is a list of 4"),
        ("DATALOADER.NUM_WORKERS", "-1", "a whole number from 0"),
        ("INPUT.FORMAT", "BRG", "one of"),
        ("INPUT.MIN_SIZE_TRAIN", "()", r"a list \(1 or more\)"),
        ("INPUT.MIN_SIZE_TEST", "-1", "a whole number from 0"),
        ("INPUT.RANDOM_FLIP", "both", "one of"),
        ("DISTILL.WARMUP_ITERS", "-1", "a whole number from 0"),
        ("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]", "a list, of which each is a number above 0"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "0", "a whole number from 1"),
        ("MODEL.RPN.NMS_THRESH", "7", "a number from 0 to 1"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0, 1.0)", "a list of 4"),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "0", "a whole number from 1"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[]", "a list"),
        ("MODEL.FPN.OUT_CHANNELS", "-256", "a whole number from 1"),
        ("SEED", "4294967296", "a whole number from -1"),
        ("OUTPUT_DIR", "", "a text"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_its_key(key, value, wanted):
    with pytest.raises(UserError, match=rf"^{key} is .*: write {wanted}"):
        load_config("", [key, value])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.STEPS", "(20, 10)"], r"SOLVER\.STEPS is \[20, 10\]: write steps that rise"),
        (["SOLVER.STEPS", "(10, 10)"], "write steps that rise"),
        (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"], "SOLVER.NESTEROV needs a momentum"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosinLR"], "did you mean 'WarmupCosineLR'"),
        (["DATALOADER.SAMPLER_TRAIN", "TrainSampler"], "did you mean 'TrainingSampler'"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "give the least and the greatest"),
        (["INPUT.CROP.SIZE", "[300, 300]"], "give shares of the image"),
        (["INPUT.MIN_SIZE_TRAIN", "(1,)"], "write 8 pixels or more, or 0"),
        (["MODEL.RPN.IN_FEATURES", "['p2', 'p2']"], "MODEL.RPN.IN_FEATURES names p2 twice"),
        (["MODEL.DEVICE", "cdua"], "MODEL.DEVICE is 'cdua', which torch does not know"),
        (["MODEL.BACKBONE.NAME", "None"], "MODEL.BACKBONE.NAME is empty"),
        (["OUTPUT_DIR", "a\0b"], "OUTPUT_DIR holds the character NUL"),
        (["DATASETS.TEST", "('a\\0b',)"], "DATASETS.TEST holds the character NUL"),
        (["GLOBAL.HACK", "-1e999"], "GLOBAL.HACK is -inf: write a finite number"),
    ],
)
def test_values_that_do_not_go_together_are_refused(opts, message):
    with pytest.raises(UserError, match=message):
        load_config("", opts)


def test_channels_of_images_and_of_their_statistics_agree():
    with pytest.raises(UserError, match="MODEL.PIXEL_STD has 1 values, .* BGR have 3 channels"):
        check_channels(load_config("", ["MODEL.PIXEL_STD", "[1.0]"]))
    grey = ["MODEL.PIXEL_STD", "[1.0]", "MODEL.PIXEL_MEAN", "[1.0]", "INPUT.FORMAT", "L"]
    check_channels(load_config("", grey))


# ------------------------------------------------------------------ keys without effect


def check(*opts):
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", *opts])
    check_distillation(cfg)
    return unused_keys(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("METHODS", "['kd']"),
        ("LEVELS", "['p3']"),
        ("WARMUP_ITERS", "5"),
        ("TEACHER.CONFIG_FILE", "t.yaml"),
    ],
)
def test_a_plain_architecture_takes_no_key_of_distilling(key, value):
    with pytest.raises(
        UserError,
        match=f"^DISTILL.{key} is given, but a RetinaNet does not distil .* to DistillRetinaNet",
    ):
        check("RetinaNet", f"DISTILL.{key}", value)


def test_a_plain_architecture_may_inherit_and_has_a_teacher_then():
    opts = ("DISTILL.INHERIT", "True", "DISTILL.TEACHER.CONFIG_FILE", "t.yaml")
    assert check("GeneralizedRCNN", *opts) == []
    with pytest.raises(UserError, match=r"DISTILL\.LEVELS"):
        check("GeneralizedRCNN", *opts, "DISTILL.LEVELS", "['p3']")


def test_an_architecture_of_another_project_may_distil_by_itself():
    check("TheirDetector", "DISTILL.DPK.WEIGHT", "5")


def test_what_a_method_that_is_not_named_is_given_is_listed():
    opts = ("DISTILL.METHODS", "['cwd']", "DISTILL.CWD.WEIGHT", "5", "DISTILL.DPK.DIM", "64")
    assert check("DistillRCNN", *opts) == ["DISTILL.DPK.DIM"]
    opts = ("DISTILL.DPK.DIM", "64")  # a base's, for the config upon it that distils
    assert check("RetinaNet", *opts) == ["DISTILL.DPK.DIM"]


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "path",
    [x for x in sorted(CONFIGS.rglob("*.yaml")) if x.parent.name != "compare"],
    ids=lambda path: path.relative_to(CONFIGS).as_posix(),
)
def test_what_the_projects_own_configs_say_has_an_effect(path):
    check_distillation(load_config(str(path)))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DISTILL.METHODS", "['dkp']"], "no distiller named 'dkp': did you mean 'dpk'"),
        (["DISTILL.DPK.WEIGHT", "-1"], r"DISTILL\.DPK\.WEIGHT"),
        (["DISTILL.CWD.WEIGHT", "-1"], r"DISTILL\.CWD\.WEIGHT"),  # though it is not used
    ],
)
def test_methods_are_looked_at_before_anything_is_built(opts, message):
    with pytest.raises(UserError, match=message):
        check("DistillRCNN", *opts)

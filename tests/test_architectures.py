"""Models that cannot be built, in a sentence."""

import pytest

from dpk_det.architectures import build
from dpk_det.errors import UserError


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon"],
            "no MODEL.BACKBONE.NAME named 'build_resnet_fpn_backbon': did you mean",
        ),
        (["MODEL.ROI_HEADS.NAME", "StandartROIHeads"], "did you mean 'StandardROIHeads'"),
        (
            ["MODEL.RPN.IN_FEATURES", "['p9']"],
            r"GeneralizedRCNN like this cannot be built .*p9",
        ),
        (["MODEL.RESNETS.NORM", "XN"], r"cannot be built \(.*XN.*\): correct MODEL"),
        (["MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]"], r"AssertionError in __init__, assert all"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]"], "cannot be built"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_sentence(tiny, opts, message):
    with pytest.raises(UserError, match=message):
        build(tiny.cfg("plain", *opts))

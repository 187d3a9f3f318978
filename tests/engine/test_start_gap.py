"""The gap before training: none where student and teacher are one, some where they are not."""

import pytest
import torch

from dpk_det.engine.start_gap import start_gap


def test_a_student_that_is_its_teacher_has_no_gap(tiny):
    learns_from = ["DISTILL.TEACHER.CONFIG_FILE", tiny.teacher]
    learns_from += ["DISTILL.TEACHER.WEIGHTS", tiny.weights]
    found = start_gap(tiny.cfg("teacher", *learns_from, "MODEL.WEIGHTS", tiny.weights), batches=2)
    assert found and max(found.values()) == pytest.approx(0, abs=1e-3)


def test_another_student_has_a_gap_on_each_level(tiny):
    found = start_gap(tiny.cfg("dpk"), batches=2)
    assert list(found) == ["p2", "p3", "p4"] and min(found.values()) > 0.05
    assert found == start_gap(tiny.cfg("dpk"), batches=2)


def test_a_network_of_timms_is_measured_with_the_weights_that_it_starts_from(tiny, tmp_path):
    import timm

    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_resnet"]
    opts += ["MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4']"]
    state = timm.create_model("test_resnet").state_dict()
    gaps = []
    for i, factor in enumerate((1.0, -1.0)):
        path = tmp_path / f"{i}.pth"
        torch.save({k: factor * v if "conv" in k else v for k, v in state.items()}, path)
        gaps.append(start_gap(tiny.cfg("dpk", *opts, "MODEL.TIMM.WEIGHTS", path), batches=2))
    assert gaps[0] != gaps[1]

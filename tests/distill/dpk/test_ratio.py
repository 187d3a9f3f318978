"""Schedules of the prior ratio."""

import math

import pytest
import torch

from dpk_det.distill.dpk.ratio import RATIOS

FALLING = ["linear", "cosine", "exponential"]


def test_the_schedules_go_by_these_names():
    assert set(RATIOS) == {"gap", "fixed", "linear", "cosine", "exponential"}


def test_gap_is_one_minus_cka_within_0_and_1():
    cka = torch.tensor([-0.2, 0.0, 0.25, 1.0])  # below 0 by chance
    assert RATIOS["gap"](cka, 0.7, 0.3).tolist() == [1, 1, 0.75, 0]


@pytest.mark.parametrize("name", sorted(RATIOS))
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_schedules_keep_shape_and_dtype(name, shape):
    got = RATIOS[name](torch.rand(shape), 0.3, 0.5)
    assert got.shape == shape and got.dtype == torch.float32
    assert ((got >= 0) & (got <= 1)).all()


def test_fixed_ignores_cka_and_progress():
    for progress in (0.0, 0.4, 1.0):
        got = RATIOS["fixed"](torch.tensor([-1.0, 0.3, 1.0]), progress, 0.125)
        assert got.tolist() == [0.125] * 3


@pytest.mark.parametrize(
    ("name", "quarter", "half", "end"),
    [
        ("linear", 0.75, 0.5, 0.0),
        ("cosine", 0.5 + math.sqrt(0.125), 0.5, 0.0),
        ("exponential", math.exp(-1.25), math.exp(-2.5), 0.00674),
    ],
)
def test_schedules_of_progress_fall_from_one(name, quarter, half, end):
    for progress, want in ((0.0, 1.0), (0.25, quarter), (0.5, half), (1.0, end)):
        got = RATIOS[name](torch.tensor([0.2, 0.9]), progress, 0.3)
        assert got.tolist() == pytest.approx([want] * 2, abs=1e-5)  # whatever CKA is


@pytest.mark.parametrize("name", FALLING)
def test_schedules_of_progress_never_rise(name):
    ratios = [RATIOS[name](torch.zeros(()), i / 50, 0.3).item() for i in range(51)]
    assert all(a >= b for a, b in zip(ratios, ratios[1:], strict=False))

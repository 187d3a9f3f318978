"""Schedules of the prior ratio."""

import math

import pytest
import torch

from dpk_det.distill.ratio import RATIOS

FALLING = ["linear", "cosine", "exponential"]


def test_the_schedules_go_by_these_names():
    assert set(RATIOS) == {"gap", "fixed", "linear", "cosine", "exponential"}


def test_gap_is_one_minus_cka():
    cka = torch.tensor([0.0, 0.25, 1.0])
    assert RATIOS["gap"](cka, 0.7, 0.0, 1.0).tolist() == [1, 0.75, 0]


def test_gap_stays_within_its_bounds():
    cka = torch.tensor([-1.0, -0.2, 0.0, 0.5, 0.75, 1.0])
    got = RATIOS["gap"](cka, 0.0, 0.25, 0.75)
    assert got.tolist() == [0.75, 0.75, 0.75, 0.5, 0.25, 0.25]
    assert RATIOS["gap"](cka, 0.0, 0.0, 1.0).max() == 1  # CKA below 0 by chance


@pytest.mark.parametrize("name", sorted(RATIOS))
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_schedules_keep_shape_and_dtype(name, shape):
    got = RATIOS[name](torch.rand(shape), 0.3, 0.0, 1.0)
    assert got.shape == shape and got.dtype == torch.float32
    assert ((got >= 0) & (got <= 1)).all()


def test_fixed_ignores_cka_and_progress():
    for progress in (0.0, 0.4, 1.0):
        got = RATIOS["fixed"](torch.tensor([-1.0, 0.3, 1.0]), progress, 0.125, 0.125)
        assert got.tolist() == [0.125] * 3


@pytest.mark.parametrize(
    ("name", "start", "quarter", "half", "end"),
    [
        ("linear", 0.9, 0.7, 0.5, 0.1),
        ("cosine", 0.9, 0.1 + 0.8 * (0.5 + math.sqrt(0.125)), 0.5, 0.1),
        ("exponential", 0.9, 0.1 + 0.8 * math.exp(-1.25), 0.1 + 0.8 * math.exp(-2.5), 0.10539),
    ],
)
def test_schedules_of_progress_fall_from_high_to_low(name, start, quarter, half, end):
    for progress, want in ((0.0, start), (0.25, quarter), (0.5, half), (1.0, end)):
        got = RATIOS[name](torch.tensor([0.2, 0.9]), progress, 0.1, 0.9)
        assert got.tolist() == pytest.approx([want] * 2, abs=1e-5)  # whatever CKA is


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.2, 0.6), (0.5, 0.5)])
@pytest.mark.parametrize("name", FALLING)
def test_schedules_of_progress_never_rise_and_stay_within_their_bounds(name, low, high):
    ratios = [RATIOS[name](torch.zeros(()), i / 50, low, high).item() for i in range(51)]
    assert all(a >= b for a, b in zip(ratios, ratios[1:], strict=False))
    assert ratios[0] == pytest.approx(high) and ratios[-1] == pytest.approx(low, abs=0.01)
    assert min(ratios) >= low - 1e-6 and max(ratios) <= high + 1e-6

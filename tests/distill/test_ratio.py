"""Schedules of the prior ratio."""

import pytest
import torch

from dpk_det.distill.ratio import RATIOS


def test_the_schedules_go_by_these_names():
    assert {"gap", "fixed"} <= set(RATIOS)


def test_gap_is_one_minus_cka():
    cka = torch.tensor([0.0, 0.25, 1.0])
    assert RATIOS["gap"](cka, low=0.0, high=1.0, fixed=0.5).tolist() == [1, 0.75, 0]


def test_gap_stays_within_its_bounds():
    cka = torch.tensor([-1.0, -0.2, 0.0, 0.5, 0.75, 1.0])
    got = RATIOS["gap"](cka, low=0.25, high=0.75, fixed=0.1)
    assert got.tolist() == [0.75, 0.75, 0.75, 0.5, 0.25, 0.25]
    assert RATIOS["gap"](cka, low=0.0, high=1.0, fixed=0.1).max() == 1  # CKA below 0 by chance


@pytest.mark.parametrize("name", sorted(RATIOS))
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_schedules_keep_shape_and_dtype(name, shape):
    got = RATIOS[name](torch.rand(shape), low=0.0, high=1.0, fixed=0.5)
    assert got.shape == shape and got.dtype == torch.float32
    assert ((got >= 0) & (got <= 1)).all()


def test_fixed_ignores_cka_and_bounds():
    got = RATIOS["fixed"](torch.tensor([-1.0, 0.3, 1.0]), low=0.6, high=0.7, fixed=0.125)
    assert got.tolist() == [0.125] * 3

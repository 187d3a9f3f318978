"""Intervals and corrected p, against other libraries and by hand."""

import math

import pytest
from scipy import stats

from dpk_det.comparison.statistics import holm, mean_interval


def test_an_interval_is_students():
    values = [1.9, 3.2, 0.4, 2.5]
    mean = sum(values) / 4
    sd = math.sqrt(sum((x - mean) ** 2 for x in values) / 3)
    half = 3.182446 * sd / 2  # the 0.975 quantile of t with 3 degrees of freedom, from a table
    assert mean_interval(values) == pytest.approx([mean - half, mean + half], rel=1e-5)
    low, high = stats.t.interval(0.95, 3, mean, sd / 2)
    assert mean_interval(values) == pytest.approx([low, high])


def test_one_value_has_no_interval():
    assert mean_interval([1.0]) is None and mean_interval([]) is None


def test_equal_values_have_an_interval_of_one_point():
    assert mean_interval([2.0, 2.0, 2.0]) == pytest.approx([2, 2])


def test_holms_p_are_those_of_the_definition():
    ps = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    # sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 is below the one before
    assert holm(ps) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(holm(ps)) == list(ps)


def test_holms_p_are_those_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is absent")
    ps = {str(i): p for i, p in enumerate([0.2, 0.0004, 0.9, 0.013, 0.05, 0.013, 0.6])}
    expected = multitest.multipletests(list(ps.values()), method="holm")[1]
    assert list(holm(ps).values()) == pytest.approx(list(expected))


def test_nothing_exceeds_one_and_a_single_comparison_stays():
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.03}) == {"a": 0.03} and holm({}) == {}

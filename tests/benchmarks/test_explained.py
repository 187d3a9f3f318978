import explained
import numpy as np
import pytest
import torch

from dpk_det.distill import Features, Level


@pytest.fixture
def maps():
    torch.manual_seed(0)
    student = torch.randn(200, 3)
    return student, student @ torch.randn(3, 3) + torch.randn(200, 3) + 5


def measured(student, teacher):
    sums = explained.Moments()
    for part in zip(student.split(64), teacher.split(64), strict=True):
        sums.add(*part)
    return sums.explained(student.shape[1])


def test_shares_are_those_of_numpy(maps):
    student, teacher = (x.double().numpy() for x in maps)
    correlations = [np.corrcoef(student[:, i], teacher[:, i])[0, 1] ** 2 for i in range(3)]
    design = np.hstack([student, np.ones((200, 1))])
    residual = teacher - design @ np.linalg.lstsq(design, teacher, rcond=None)[0]
    as_it_is, linear = measured(*maps)
    assert as_it_is == pytest.approx(np.mean(correlations), abs=1e-5)
    assert linear == pytest.approx(np.mean(1 - residual.var(0) / teacher.var(0)), abs=1e-5)


def test_dead_channels_and_other_widths_do_no_harm(maps):
    student, teacher = maps
    dead = torch.cat([student, torch.zeros(200, 1)], 1)
    as_it_is, linear = measured(dead, teacher)
    assert as_it_is is None
    assert linear == pytest.approx(measured(student, teacher)[1], abs=1e-4)


def test_padding_is_left_out():
    level, sums = Level("p2", "p2", 4, 3, 3), explained.Moments()

    def as_features(maps):
        return Features({"p2": maps}, {"p2": 4}, [(16, 24), (16, 12)])  # the second is padded

    pairs = [(x, x + torch.randn(2, 3, 4, 6) + 1) for x in torch.randn(5, 2, 3, 4, 6)]
    own, other = (iter([as_features(pair[i]) for pair in pairs]) for i in (0, 1))
    for maps in pairs:
        for real in (lambda x: x[0], lambda x: x[1, :, :, :3]):
            sums.add(*(real(x).flatten(1).T for x in maps))
    found = explained.measure(lambda batch: next(own), lambda batch: next(other), [level], pairs)
    assert found["p2"] == pytest.approx(sums.explained(3), abs=1e-6)

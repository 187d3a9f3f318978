"""Which tokens take the prior: exact counts, and a fair draw."""

import itertools
import random

import pytest
import torch

from dpk_det.distill.mask import MASKS, prior_count, random_mask


def count(ratio, n):
    """Half to even, then within 1 .. n - 1; an only token takes none."""
    return min(max(round(ratio * n), 1), n - 1)


def valid_rows(n, num_valid, g):
    """One row of n for each count, its valid tokens anywhere."""
    valid = torch.zeros(len(num_valid), n, dtype=torch.bool)
    for row, v in zip(valid, num_valid, strict=True):
        row[torch.randperm(n, generator=g)[:v]] = True
    return valid


@pytest.mark.parametrize(
    ("ratio", "n", "want"),
    [(0, 2, 1), (1, 2, 1), (0, 9, 1), (1, 9, 8), (0.5, 9, 4), (0.5, 11, 6), (0.3, 10, 3)]
    + [(0.04, 10, 1), (0.96, 10, 9)],
)
def test_prior_count_is_the_rounded_share_within_its_bounds(ratio, n, want):
    assert prior_count(ratio, n) == want


def test_every_row_has_the_exact_count_and_so_has_its_valid_part():
    rng, g = random.Random(0), torch.Generator().manual_seed(0)
    for trial in range(600):
        n = rng.choice([2, 3, 4, 5, 8, 13, 49])
        ratio = rng.choice([0.0, 1.0, 0.5, 0.25, 0.75, rng.random()])
        num_valid = [rng.randint(1, n) for _ in range(rng.randint(1, 5))]
        valid = valid_rows(n, num_valid, g)
        got = random_mask(valid, ratio)
        where = (trial, n, ratio, num_valid)
        assert got.dtype == torch.bool and got.shape == valid.shape, where
        assert got.sum(1).tolist() == [count(ratio, n)] * len(valid), where
        assert (got & valid).sum(1).tolist() == [count(ratio, v) for v in num_valid], where


@pytest.mark.parametrize("n", [2, 3, 6])
def test_every_number_of_valid_tokens_fills_up_at_every_ratio(n):
    # exhaustive: all valid counts, all ratios on a grid that has the ties
    valid = valid_rows(n, range(1, n + 1), torch.Generator().manual_seed(1))
    for ratio in (i / 24 for i in range(25)):
        got = random_mask(valid, ratio)
        assert (got.sum(1) == count(ratio, n)).all(), ratio
        # an image with more than one token gives both encoders at least one
        num = (got & valid).sum(1)
        assert (num[1:] >= 1).all() and (num < valid.sum(1)).all(), ratio


def test_ratios_that_float32_holds_round_alike_on_host_and_device():
    # DPK's ratios come from a float32 tensor, as 0.35 = 0.34999999403953552 does
    valid = valid_rows(16, [10], torch.Generator().manual_seed(2))
    ratio = torch.tensor(0.35).item()
    assert (random_mask(valid, ratio) & valid).sum() == prior_count(ratio, 10)


def test_the_draw_is_uniform_over_subsets_of_valid_tokens():
    torch.manual_seed(0)
    rows = 12_000
    valid = torch.tensor([1, 0, 1, 1, 0, 1]).bool().expand(rows, 6)
    got = random_mask(valid, 0.5)
    taken = got[:, valid[0]]
    assert (taken.sum(1) == 2).all()
    subsets = list(itertools.combinations(range(4), 2))
    seen = torch.tensor([(taken[:, list(s)].all(1)).sum() for s in subsets]).float()
    want = rows / len(subsets)
    chi2 = ((seen - want) ** 2 / want).sum()
    assert chi2 < 20.5, seen  # 5 degrees of freedom: exceeded once in 1000 draws
    # rows are drawn apart from one another
    same_as_next = (taken[1:] == taken[:-1]).all(1).float().mean()
    assert same_as_next == pytest.approx(1 / 6, abs=0.015)


def test_the_draw_follows_the_seed():
    valid = torch.ones(4, 50, dtype=torch.bool)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(MASKS["random"](valid, 0.4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])

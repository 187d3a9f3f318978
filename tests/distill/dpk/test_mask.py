"""Which tokens take the prior: exact counts, a fair draw, and the shapes of the layouts."""

import itertools
import random

import pytest
import torch

from dpk_det.distill.dpk.mask import MASKS, prior_count, prior_first, take_prior


def count(ratio, n):
    """Half to even, then within 1 .. n - 1; an only token takes none."""
    return min(max(round(ratio * n), 1), n - 1)


def draw(name, valid, ratio):
    """What takes the prior of (B, h, w) valid tokens, as (B, N)."""
    line = MASKS[name](valid)
    assert line.shape == (len(valid), valid[0].numel()), name
    return take_prior(line, valid.flatten(1), ratio)


def valid_rows(n, num_valid, g):
    """One row of n for each count, its valid tokens anywhere."""
    valid = torch.zeros(len(num_valid), n, dtype=torch.bool)
    for row, v in zip(valid, num_valid, strict=True):
        row[torch.randperm(n, generator=g)[:v]] = True
    return valid


def corners(size, extents):
    """(B, h, w), each image's top left extent valid."""
    valid = torch.zeros(len(extents), *size, dtype=torch.bool)
    for mask, (h, w) in zip(valid, extents, strict=True):
        mask[:h, :w] = True
    return valid


def test_the_layouts_go_by_these_names():
    assert set(MASKS) == {"random", "block", "grid"}


@pytest.mark.parametrize(
    ("ratio", "n", "want"),
    [(0, 2, 1), (1, 2, 1), (0, 9, 1), (1, 9, 8), (0.5, 9, 4), (0.5, 11, 6), (0.3, 10, 3)]
    + [(0.04, 10, 1), (0.96, 10, 9)],
)
def test_prior_count_is_the_rounded_share_within_its_bounds(ratio, n, want):
    assert prior_count(ratio, n) == want


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize("name", MASKS)
def test_every_row_has_the_exact_count_and_so_has_its_valid_part(name):
    rng, g = random.Random(0), torch.Generator().manual_seed(0)
    for trial in range(300):
        n = rng.choice([2, 3, 4, 5, 8, 13, 48, 49])
        height = rng.choice([d for d in range(1, n + 1) if n % d == 0])
        ratio = rng.choice([0.0, 1.0, 0.5, 0.25, 0.75, rng.random()])
        num_valid = [rng.randint(1, n) for _ in range(rng.randint(1, 5))]
        valid = valid_rows(n, num_valid, g)
        got = draw(name, valid.view(-1, height, n // height), ratio)
        where = (trial, n, ratio, num_valid)
        assert got.dtype == torch.bool and got.shape == valid.shape, where
        assert got.sum(1).tolist() == [count(ratio, n)] * len(valid), where
        assert (got & valid).sum(1).tolist() == [count(ratio, v) for v in num_valid], where


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("n", [2, 3, 6])
def test_every_number_of_valid_tokens_fills_up_at_every_ratio(n, name):
    # exhaustive: all valid counts, all ratios on a grid that has the ties
    valid = valid_rows(n, range(1, n + 1), torch.Generator().manual_seed(1))
    for ratio in (i / 24 for i in range(25)):
        got = draw(name, valid.view(-1, 1, n), ratio)
        assert (got.sum(1) == count(ratio, n)).all(), ratio
        # an image with more than one token gives both encoders at least one
        num = (got & valid).sum(1)
        assert (num[1:] >= 1).all() and (num < valid.sum(1)).all(), ratio


def test_ratios_that_float32_holds_round_alike_on_host_and_device():
    # DPK's ratios come from a float32 tensor, as 0.35 = 0.34999999403953552 does
    valid = valid_rows(16, [10], torch.Generator().manual_seed(2))
    ratio = torch.tensor(0.35).item()
    assert (draw("random", valid.view(1, 4, 4), ratio) & valid).sum() == prior_count(ratio, 10)


def test_the_first_in_line_take_the_prior_and_padding_fills_up():
    line = torch.tensor([[5.0, 0.0, 3.0, 1.0, 4.0, 2.0]] * 2)
    valid = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    got = take_prior(line, valid, 0.5)
    assert got[0].nonzero().flatten().tolist() == [1, 3, 5]
    assert got[1, :4].nonzero().flatten().tolist() == [1, 3] and got[1].sum() == 3


def test_the_order_begins_with_those_that_take_the_prior():
    g = torch.Generator().manual_seed(3)
    line = torch.rand(5, 12, generator=g)
    padded = valid_rows(12, [12, 7, 4, 1, 9], g)
    for valid in (None, padded):
        for ratio in (0.0, 0.3, 1.0):
            order = prior_first(line, valid, ratio)
            assert torch.equal(order.sort(1).values, torch.arange(12).expand(5, 12))
            takes = take_prior(line, torch.ones_like(padded) if valid is None else valid, ratio)
            assert takes.gather(1, order[:, : prior_count(ratio, 12)]).all()


@pytest.mark.parametrize("name", MASKS)
def test_every_valid_token_takes_the_prior_sooner_or_later_and_none_always(name):
    torch.manual_seed(0)
    valid = corners((6, 7), [(6, 7), (4, 3)] * 150)
    got = draw(name, valid, 0.3).view(-1, 6, 7)
    for first, (h, w) in ((0, (6, 7)), (1, (4, 3))):
        share = got[first::2, :h, :w].float().mean(0)
        assert share.min() > 0.02 and share.max() < 0.8, share
    assert not torch.equal(got[0], got[2])  # every image has a draw of its own


@pytest.mark.parametrize("name", MASKS)
def test_the_draw_follows_the_seed(name):
    valid = torch.ones(4, 5, 10, dtype=torch.bool)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(draw(name, valid, 0.4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# ------------------------------------------------------------------ random


def test_the_random_draw_is_uniform_over_subsets_of_valid_tokens():
    torch.manual_seed(0)
    rows = 12_000
    valid = torch.tensor([1, 0, 1, 1, 0, 1]).bool().expand(rows, 6)
    got = draw("random", valid.view(rows, 2, 3), 0.5)
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


# ------------------------------------------------------------------ block


def connected(mask):
    """Whether the true cells of (h, w) hang together, corners included."""
    cells = {tuple(at) for at in mask.nonzero().tolist()}
    reached, new = set(), {min(cells)}
    while new:
        reached |= new
        near = {(r + i, c + j) for r, c in new for i in (-1, 0, 1) for j in (-1, 0, 1)}
        new = (near & cells) - reached
    return reached == cells


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.7])
@pytest.mark.parametrize("extent", [(9, 11), (5, 8)])
def test_a_block_is_a_square_of_neighbours_but_for_its_last_ring(extent, ratio):
    torch.manual_seed(0)
    h, w = extent
    valid = corners((9, 11), [extent] * 40)
    taken = draw("block", valid, ratio).view(-1, 9, 11) & valid
    want = count(ratio, h * w)
    for mask in taken:
        assert mask.sum() == want and connected(mask)
        # around some valid centre whole rings are taken, then a part of one, and nothing beyond
        rings = []
        for r, c in mask.nonzero().tolist():
            far = torch.tensor([[max(abs(i - r), abs(j - c)) for j in range(w)] for i in range(h)])
            inside, outside = far[mask[:h, :w]], far[~mask[:h, :w]]
            rings.append(inside.max() <= outside.min())
        assert any(rings)


def test_the_centre_of_a_block_is_any_valid_token():
    torch.manual_seed(0)
    valid = corners((4, 5), [(3, 2)] * 600)
    taken = (draw("block", valid, 0.0).view(-1, 4, 5) & valid)[:, :3, :2]  # the centre alone
    assert (taken.sum((1, 2)) == 1).all()
    assert taken.float().mean(0).flatten().tolist() == pytest.approx([1 / 6] * 6, abs=0.05)


# ------------------------------------------------------------------ grid


def test_a_quarter_of_a_grid_is_one_token_of_each_square_of_four():
    torch.manual_seed(0)
    taken = draw("grid", torch.ones(60, 8, 8, dtype=torch.bool), 0.25).view(-1, 8, 8)
    patterns = set()
    for mask in taken:
        rows, cols = ({at[i] % 2 for at in mask.nonzero().tolist()} for i in (0, 1))
        assert len(rows) == len(cols) == 1 and mask.sum() == 16
        patterns.add((rows.pop(), cols.pop()))
    assert len(patterns) == 4  # all shifts occur


def test_half_of_a_grid_is_a_checkerboard():
    torch.manual_seed(0)
    taken = draw("grid", torch.ones(40, 8, 8, dtype=torch.bool), 0.5).view(-1, 8, 8)
    board = (torch.arange(8).view(-1, 1) + torch.arange(8)) % 2 == 0
    black = [torch.equal(mask, board) for mask in taken]
    white = [torch.equal(mask, ~board) for mask in taken]
    assert all(b or w for b, w in zip(black, white, strict=True))
    assert any(black) and any(white)


@pytest.mark.parametrize("ratio", [1 / 16, 1 / 8, 0.25, 0.5, 0.75])
def test_a_grid_spreads_evenly_over_every_square_of_sixteen(ratio):
    taken = draw("grid", torch.ones(20, 8, 12, dtype=torch.bool), ratio).view(-1, 8, 12)
    for r in range(5):
        for c in range(9):
            squares = taken[:, r : r + 4, c : c + 4].sum((1, 2))
            assert (squares == round(16 * ratio)).all()


def test_ties_of_a_grid_go_by_chance():
    torch.manual_seed(0)
    taken = draw("grid", torch.ones(300, 8, 8, dtype=torch.bool), 0.05).view(-1, 8, 8)
    share = taken.float().mean(0)  # 3 of the 4 tokens of the first threshold
    assert share.min() > 0.01 and share.max() < 0.12

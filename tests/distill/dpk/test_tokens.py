"""Maps to tokens and back, positions, and what is padding."""

import math

import pytest
import torch
from torch.nn import functional as F

from dpk_det.distill.dpk.tokens import (
    PatchEmbed,
    PatchExpand,
    pad_to_tokens,
    sincos_positions,
    token_grid,
)

SIZES = [(1, 1, 1), (4, 6, 1), (4, 6, 2), (5, 7, 2), (1, 1, 4), (3, 9, 4), (8, 2, 4)]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("height", "width", "k", "want"),
    [(8, 12, 4, (2, 3)), (9, 12, 4, (3, 3)), (1, 1, 4, (1, 1)), (7, 5, 1, (7, 5))],
)
def test_token_grid_covers_the_map(height, width, k, want):
    assert token_grid(height, width, k) == want


@pytest.mark.parametrize(("height", "width", "k"), SIZES)
def test_padding_to_tokens_is_zeros_at_right_and_bottom(height, width, k):
    x = torch.randn(2, 3, height, width)
    got = pad_to_tokens(x, k)
    h, w = token_grid(height, width, k)
    assert got.shape == (2, 3, h * k, w * k)
    assert torch.equal(got[..., :height, :width], x)
    assert got[..., height:, :].count_nonzero() == got[..., width:].count_nonzero() == 0


@pytest.mark.parametrize(("height", "width", "k"), SIZES)
def test_patch_embed_is_a_matrix_product_of_each_patch(height, width, k):
    torch.manual_seed(0)
    embed, x = PatchEmbed(3, 8, k), torch.randn(2, 3, height, width)
    padded = torch.zeros(2, 3, math.ceil(height / k) * k, math.ceil(width / k) * k)
    padded[..., :height, :width] = x
    patches = F.unfold(padded, k, stride=k).transpose(1, 2)  # (B, N, C k k), row by row
    want = patches @ embed.weight.flatten(1).T + embed.bias
    torch.testing.assert_close(embed(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "k"), SIZES)
def test_patch_expand_puts_each_token_on_its_patch(height, width, k):
    torch.manual_seed(0)
    h, w = math.ceil(height / k), math.ceil(width / k)
    expand, tokens = PatchExpand(8, 3, k), torch.randn(2, h * w, 8)
    got = expand(tokens, (height, width))
    want = torch.empty(2, 3, height, width)
    for row in range(height):
        for col in range(width):
            token = tokens[:, row // k * w + col // k]
            want[:, :, row, col] = token @ expand.weight[:, :, row % k, col % k] + expand.bias
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# (channels, width of the tokens, k) and the groups: what of k divides both widths
GROUPS = [((6, 8, 4), 2), ((8, 16, 4), 4), ((3, 8, 4), 1), ((12, 12, 6), 6), ((4, 4, 1), 1)]


@pytest.mark.parametrize(("widths", "groups"), GROUPS)
def test_a_grouped_token_sees_its_groups_channels_only(widths, groups):
    torch.manual_seed(0)
    channels, dim, k = widths
    embed, x = PatchEmbed(*widths, grouped=True), torch.randn(2, channels, 2 * k, k)
    parts = []
    for some, weight in zip(x.chunk(groups, 1), embed.weight.chunk(groups), strict=True):
        parts.append(F.unfold(some, k, stride=k).transpose(1, 2) @ weight.flatten(1).T)
    torch.testing.assert_close(embed(x), torch.cat(parts, 2) + embed.bias, rtol=1e-4, atol=1e-5)
    assert embed.weight.numel() * groups == PatchEmbed(*widths).weight.numel()


@pytest.mark.parametrize(("widths", "groups"), GROUPS)
def test_a_grouped_token_is_expanded_group_by_group(widths, groups):
    torch.manual_seed(0)
    channels, dim, k = widths
    expand, tokens = PatchExpand(dim, channels, k, grouped=True), torch.randn(2, 2, dim)
    parts = []
    for some, weight in zip(tokens.chunk(groups, 2), expand.weight.chunk(groups), strict=True):
        cells = torch.einsum("bnd,dcuv->bcnuv", some, weight)
        parts.append(cells.flatten(2, 3))  # two tokens, one below the other
    want = torch.cat(parts, 1) + expand.bias[:, None, None]
    torch.testing.assert_close(expand(tokens, (2 * k, k)), want, rtol=1e-4, atol=1e-5)
    assert expand.weight.numel() * groups == PatchExpand(dim, channels, k).weight.numel()


@pytest.mark.parametrize(("h", "w", "dim"), [(1, 1, 4), (2, 3, 8), (5, 1, 16), (4, 7, 12)])
def test_positions_are_sines_and_cosines_of_row_and_column(h, w, dim):
    want = torch.empty(h * w, dim)
    quarter = dim // 4
    for row in range(h):
        for col in range(w):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                code = want[row * w + col]
                code[i] = math.sin(row * frequency)
                code[quarter + i] = math.cos(row * frequency)
                code[2 * quarter + i] = math.sin(col * frequency)
                code[3 * quarter + i] = math.cos(col * frequency)
    torch.testing.assert_close(sincos_positions(h, w, dim, CPU), want, rtol=1e-5, atol=1e-6)


def test_distinct_positions_have_distinct_codes():
    codes = sincos_positions(30, 42, 32, CPU)
    distances = torch.cdist(codes, codes) + 10 * torch.eye(len(codes))
    assert distances.min() > 0.1
    assert not codes.requires_grad


def test_a_position_does_not_depend_on_the_grid_around_it():
    small, large = (sincos_positions(*s, 16, CPU).view(*s, 16) for s in ((3, 4), (9, 8)))
    assert torch.equal(small, large[:3, :4])


@pytest.mark.parametrize("dim", [6, 7, 13])
def test_positions_need_a_width_that_four_divides(dim):
    with pytest.raises(ValueError, match=f"{dim}.*multiple of 4"):
        sincos_positions(2, 2, dim, CPU)

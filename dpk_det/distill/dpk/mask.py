"""Chooses the tokens that take the prior.

A layout gives each token a place in line, drawn anew for every image. The first tokens in line,
which have the smallest values, take the prior. The ratio sets their number.

Shapes: B images, h x w = N tokens per image (padding included).
"""

from functools import lru_cache

import torch
from torch import Tensor

# Thresholds of ordered dithering (Bayer 1973). The first 4 of 16 form a regular grid of every other
# token in both directions, and the first 8 form a checkerboard.
BAYER = ((0, 8, 2, 10), (12, 4, 14, 6), (3, 11, 1, 9), (15, 7, 13, 5))


def random(valid: Tensor) -> Tensor:
    """Any set of tokens is as likely as any other."""
    return torch.rand(valid.shape, device=valid.device).flatten(1)


def block(valid: Tensor) -> Tensor:
    """A square of neighbours around a random valid token, cut where the image ends."""
    _, h, w = valid.shape
    rows, cols = torch.meshgrid(
        torch.arange(h, device=valid.device), torch.arange(w, device=valid.device), indexing="ij"
    )
    noise = torch.rand(valid.shape, device=valid.device)
    centre = (noise + valid).flatten(1).argmax(1)[:, None, None]
    distance = torch.maximum((rows - centre // w).abs(), (cols - centre % w).abs())
    return (distance + 0.5 * torch.rand_like(noise)).flatten(1)  # equal distances in random order


def grid(valid: Tensor) -> Tensor:
    """The most even spread that the ratio allows, shifted at random.

    For a ratio of 1/4 it is the regular grid of MAE (He et al. 2022): one token per 2 x 2 square.
    """
    batch, h, w = valid.shape
    device = valid.device
    shift = torch.randint(len(BAYER), (2, batch, 1, 1), device=device)
    rows = (torch.arange(h, device=device).view(1, -1, 1) + shift[0]) % len(BAYER)
    cols = (torch.arange(w, device=device).view(1, 1, -1) + shift[1]) % len(BAYER)
    order = _bayer(device)[rows, cols]
    return (order + 0.5 * torch.rand(valid.shape, device=device)).flatten(1)


MASKS = {"random": random, "block": block, "grid": grid}


def prior_count(ratio: float, n: int) -> int:
    """``round(ratio * n)``, kept within 1..n-1 so that both encoders see a token on every step."""
    return min(max(round(ratio * n), 1), n - 1)


def prior_first(line: Tensor, valid: Tensor | None, ratio: float) -> Tensor:
    """Order the tokens so that the first ``prior_count(ratio, N)`` are those that take the prior.

    Args:
        line: as :func:`take_prior` takes it.
        valid: as :func:`take_prior` takes it; None: all tokens are valid.
        ratio: as :func:`take_prior` takes it.

    Returns:
        (B, N) int64, a permutation in each row.
    """
    if valid is None:
        return line.argsort(1)
    return (~take_prior(line, valid, ratio)).byte().argsort(1)


def take_prior(line: Tensor, valid: Tensor, ratio: float) -> Tensor:
    """Say which tokens take the prior.

    Of an image's V valid tokens, ``prior_count(ratio, V)`` take it. Padding tokens fill up each
    row, so that every image has the same number of them and the batch stays one tensor.

    Args:
        line: (B, N), each token's place in line, from one of :data:`MASKS`.
        valid: (B, N) bool, false where a token lies in padding. N is at least 2.
        ratio: share of tokens that take the prior, in [0, 1].

    Returns:
        (B, N) bool with exactly ``prior_count(ratio, N)`` true in each row.
    """
    n = valid.shape[1]
    # Valid tokens stand in line before padding tokens. The first valid ones take the prior, and so
    # do as many padding tokens as the row's count still needs.
    order = line.masked_fill(~valid, torch.inf).argsort(1)
    rank = torch.empty_like(order).scatter_(1, order, _arange_like(order))
    num_valid = valid.sum(1, keepdim=True)
    count = prior_count(ratio, n)
    take = (ratio * num_valid.double()).round().clamp(min=1)
    take = take.minimum(num_valid - 1)  # a single valid token stays the student's
    take = take.maximum(count - (n - num_valid)).clamp(max=count)  # padding must be able to fill up
    fill = count - take
    return (rank < take) | ((rank >= num_valid) & (rank < num_valid + fill))


@lru_cache(maxsize=8)
def _bayer(device: torch.device) -> Tensor:
    return torch.tensor(BAYER, device=device)


def _arange_like(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device).expand_as(x)

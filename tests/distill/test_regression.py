"""Targets of regression, moments, errors and adapters, against numpy and loops."""

import numpy as np
import pytest
import torch
from torch import nn

from dpk_det.distill import Level
from dpk_det.distill.regression import (
    TARGETS,
    channel_adapter,
    channel_adapters,
    channel_moments,
    masked_mse,
    standardise,
)

EXTENTS = [None, [(5, 4), (2, 6)]]


def maps(seed=0):
    """Two (2, 4, 5, 6) maps; channels of different scale about 100, the third of them dead."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(2, 4, 5, 6, generator=g) for _ in range(2))
    x = x * torch.arange(1, 5).view(4, 1, 1) + 100
    x[:, 2] = 7
    return x, y


def mask(extents):
    if extents is None:
        return None
    cells = torch.zeros(2, 5, 6, dtype=torch.bool)
    for rows, (h, w) in zip(cells, extents, strict=True):
        rows[:h, :w] = True
    return cells


def columns(x, extents):
    """(C, n), the values of the cells that count."""
    extents = extents or [(5, 6)] * 2
    images = zip(x.double().numpy(), extents, strict=True)
    return np.concatenate([t[:, :h, :w].reshape(len(t), -1) for t, (h, w) in images], 1)


def dirty(x, cells):
    """The map with something in its padding that would show."""
    return x if cells is None else x.masked_fill(~cells.unsqueeze(1), 1e6)


@pytest.mark.parametrize("extents", EXTENTS)
def test_channel_moments_equal_numpy(extents):
    x, cells = maps()[0], mask(extents)
    values = columns(x, extents)
    for got, want in zip(
        channel_moments(dirty(x, cells), cells), (values.mean(1), values.var(1)), strict=True
    ):
        assert got.shape == (1, 4, 1, 1)
        np.testing.assert_allclose(got.flatten(), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("extents", EXTENTS)
def test_standard_target_equals_numpy(extents):
    x, cells = maps()[0], mask(extents)
    values = columns(x, extents)
    want = (values - values.mean(1, keepdims=True)) / (values.var(1, keepdims=True) + 1e-6) ** 0.5
    got, scale = TARGETS["standard"](x, cells)
    assert scale == 1
    np.testing.assert_allclose(columns(got, extents), want, rtol=1e-3, atol=1e-3)
    assert got[:, 2].abs().max() < 1e-3  # a dead channel has no deviation
    assert torch.equal(standardise(x, cells), got)


def test_the_smallest_deviations_are_not_blown_up():
    x = torch.tensor([[[[0.0, 2e-3]]]])  # variance 1e-6, as much as is added to it
    assert standardise(x, None).flatten().tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_a_map_of_one_cell_is_standardised_to_zero_with_a_finite_gradient():
    # the top of a pyramid, one image a process
    x = torch.tensor([[[[3.0]], [[-5.0]]]], requires_grad=True)
    out = standardise(x, None)
    out.sum().backward()
    assert out.flatten().tolist() == [0, 0] and x.grad.isfinite().all()


def test_raw_target_is_the_map_itself():
    x, _ = maps()
    for extents in EXTENTS:
        target, scale = TARGETS["raw"](x, mask(extents))
        assert target is x and scale == 1


@pytest.mark.parametrize("extents", EXTENTS)
def test_relative_target_is_the_map_and_the_error_over_its_variance(extents):
    y, cells = maps()[1], mask(extents)
    target, scale = TARGETS["relative"](dirty(y, cells), cells)
    assert torch.equal(target, dirty(y, cells))
    assert scale.item() == pytest.approx(1 / (columns(y, extents).var(1).mean() + 1e-6), rel=1e-4)


def test_relative_target_of_a_map_that_hardly_varies_goes_by_its_size():
    y = 30 + 0.001 * maps()[1]
    _, scale = TARGETS["relative"](y, None)
    assert scale.item() == pytest.approx(1 / (0.01 * 30**2), rel=1e-3)
    _, scale = TARGETS["relative"](torch.zeros(2, 4, 5, 6), None)
    assert scale.item() == pytest.approx(1e6, rel=1e-3)


@pytest.mark.parametrize("extents", EXTENTS)
def test_masked_mse_is_the_mean_over_channels_and_cells_that_count(extents):
    (x, y), cells = maps(), mask(extents)
    want = ((columns(x, extents) - columns(y, extents)) ** 2).mean()
    out = dirty(x, cells).requires_grad_()
    got = masked_mse(out, y, cells)
    assert got.item() == pytest.approx(want, rel=1e-5)
    got.backward()
    if cells is not None:
        assert not out.grad.permute(0, 2, 3, 1)[~cells].any()


def test_masked_mse_of_no_cells_is_zero_with_zero_gradients():
    x, y = maps()
    x.requires_grad_()
    loss = masked_mse(x, y, torch.zeros(2, 5, 6, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and not x.grad.any()


def test_adapters_are_convolutions_only_where_widths_differ():
    levels = [Level("p3", "q3", 8, 3, 5), Level("p4", "q4", 16, 4, 4)]
    adapters = channel_adapters(levels)
    assert list(adapters) == ["p3", "p4"]
    assert isinstance(adapters["p4"], nn.Identity)
    assert tuple(adapters["p3"].weight.shape) == (5, 3, 1, 1)
    assert channel_adapter(levels[0])(torch.randn(2, 3, 6, 7)).shape == (2, 5, 6, 7)

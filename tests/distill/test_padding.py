"""Which cells are real."""

import pytest
import torch

from dpk_det.distill.padding import valid_cells, valid_mask

CPU = torch.device("cpu")


def test_valid_cells_counts_cells_that_lie_partly_in_the_image():
    sizes = [(64, 64), (65, 1), (33, 32), (100, 31)]
    assert valid_cells(sizes, 32, 4, (3, 2)) == [(2, 2), (3, 1), (2, 1), (3, 1)]


def test_valid_cells_never_exceeds_the_map():
    assert valid_cells([(1000, 10), (10, 1000)], 8, 2, (4, 5)) == [(4, 2), (2, 5)]


def test_without_image_sizes_every_cell_is_valid():
    assert valid_cells(None, 8, 3, (4, 5)) == [(4, 5)] * 3


def test_valid_mask_is_true_on_each_top_left_extent():
    got = valid_mask([(2, 3), (1, 1), (3, 4)], (3, 4), CPU)
    want = torch.tensor(
        [
            [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]],
            [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        ]
    )
    assert torch.equal(got, want.bool())


@pytest.mark.parametrize("size", [(3, 4), [3, 4], torch.Size([3, 4])])
def test_valid_mask_is_none_where_nothing_is_padded(size):
    assert valid_mask([(3, 4), (3, 4)], size, CPU) is None

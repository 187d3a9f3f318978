"""Copies on the host, read without a wait."""

import torch

from dpk_det.distill.late import Late


def test_a_copy_is_read_as_it_was_and_carries_no_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    late = Late(x * 3)
    assert late.here
    assert late.read().tolist() == [3, 6] and not late.read().requires_grad

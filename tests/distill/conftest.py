"""Every test of dpk_det.distill starts from the same seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)

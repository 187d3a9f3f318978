"""Schedules of the prior ratio, which is the share of the teacher given as prior knowledge.

A schedule takes CKA (of any shape), the progress of training (in [0, 1]) and the ratio of the fixed
schedule. It returns a prior ratio in [0, 1] of CKA's shape. Schedules that follow progress fall
from 1, because the student should need less and less. They serve to compare the paper's dynamic
ratio with.
"""

import math

from torch import Tensor

DECAY = 5.0  # the exponential schedule ends at exp(-5), under 1%


def gap(cka: Tensor, progress: float, ratio: float) -> Tensor:
    """The dynamic schedule of DPK: ``clamp(1 - CKA, 0, 1)``."""
    return (1 - cka).clamp(0, 1)


def linear(cka: Tensor, progress: float, ratio: float) -> Tensor:
    """``1 - progress``."""
    return cka.new_full(cka.shape, 1 - progress)


def cosine(cka: Tensor, progress: float, ratio: float) -> Tensor:
    """Half a period of a cosine from 1 to 0."""
    return cka.new_full(cka.shape, (1 + math.cos(math.pi * progress)) / 2)


def exponential(cka: Tensor, progress: float, ratio: float) -> Tensor:
    """``exp(-5 progress)``."""
    return cka.new_full(cka.shape, math.exp(-DECAY * progress))


def fixed(cka: Tensor, progress: float, ratio: float) -> Tensor:
    """The same ratio throughout."""
    return cka.new_full(cka.shape, ratio)


RATIOS = {
    "gap": gap,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "fixed": fixed,
}

"""How much of the teacher is given as prior knowledge: schedules of the prior ratio.

A schedule maps CKA, of any shape, and the progress of training, in [0, 1], to a prior ratio in
[low, high] of CKA's shape. Those that follow progress fall from high to low, as the student is
meant to need less and less; they are what the paper's dynamic ratio is compared with.
"""

import math

from torch import Tensor

DECAY = 5.0  # the exponential schedule ends at exp(-5), under 1%, of its range


def gap(cka: Tensor, progress: float, low: float, high: float) -> Tensor:
    """The dynamic schedule of DPK: ``clamp(1 - CKA, low, high)``."""
    return (1 - cka).clamp(low, high)


def linear(cka: Tensor, progress: float, low: float, high: float) -> Tensor:
    """``high - (high - low) progress``."""
    return cka.new_full(cka.shape, high - (high - low) * progress)


def cosine(cka: Tensor, progress: float, low: float, high: float) -> Tensor:
    """Half a period of a cosine from high to low."""
    share = (1 + math.cos(math.pi * progress)) / 2
    return cka.new_full(cka.shape, low + (high - low) * share)


def exponential(cka: Tensor, progress: float, low: float, high: float) -> Tensor:
    """``low + (high - low) exp(-5 progress)``."""
    return cka.new_full(cka.shape, low + (high - low) * math.exp(-DECAY * progress))


def fixed(cka: Tensor, progress: float, low: float, high: float) -> Tensor:
    """The same ratio throughout: low, which the caller sets equal to high."""
    return cka.new_full(cka.shape, low)


RATIOS = {
    "gap": gap,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "fixed": fixed,
}

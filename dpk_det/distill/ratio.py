"""How much of the teacher is given as prior knowledge: schedules of the prior ratio.

A schedule maps CKA, a scalar or any shape, to a prior ratio in [0, 1] of the same shape.
"""

from torch import Tensor


def gap(cka: Tensor, low: float, high: float, fixed: float) -> Tensor:
    """The dynamic schedule of DPK (section 3 of the paper): ``clamp(1 - CKA, low, high)``."""
    return (1 - cka).clamp(low, high)


def fixed(cka: Tensor, low: float, high: float, fixed: float) -> Tensor:
    """The same ratio throughout, for ablation."""
    return cka.new_full(cka.shape, fixed)


RATIOS = {"gap": gap, "fixed": fixed}

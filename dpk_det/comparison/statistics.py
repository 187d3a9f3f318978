"""Statistics over a few seeds: confidence intervals, and p-values of several comparisons."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy import stats

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """Return the confidence interval of a mean, by Student's t.

    Returns:
        Lower and upper end; None for fewer than two values.
    """
    if len(values) < 2:
        return None
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    half = float(quantile) * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def holm(ps: Mapping[Any, float]) -> dict[Any, float]:
    """Correct p-values for the number of comparisons, by Holm (Scand. J. Stat. 6, 1979).

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on. No corrected value
    is smaller than the previous one, or larger than 1. The chance of even one false alarm therefore
    stays below the chosen level, even if the comparisons depend on each other.

    Args:
        ps: p-value of each comparison, by name.
    """
    corrected, least = {}, 0.0
    for rank, name in enumerate(sorted(ps, key=ps.__getitem__)):
        least = corrected[name] = max(least, min(1.0, (len(ps) - rank) * ps[name]))
    return {name: corrected[name] for name in ps}

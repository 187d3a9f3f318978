"""Reasons to doubt a comparison: what to mend before its gains mean anything."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from dpk_det.comparison.plan import Plan
from dpk_det.comparison.report import metric_name, spread
from dpk_det.comparison.run import read_metrics

SHARES = 0.1, 50.0
"""Outside of these, a method's gradient is too weak or too strong: in docs/results.md, tuned
weights give shares from 0.5 to 28."""


def doubts(todo: Plan, summary: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each teacher that knows too little, and for each odd weight.

    Args:
        todo: the trainings; some may be unfinished.
        summary: rows as :func:`~dpk_det.comparison.summary.summarise` builds them: ``metric``,
            ``baseline``, ``teachers`` and ``methods``.
    """
    return [*_weak_teachers(summary), *_odd_shares(todo, summary)]


def _weak_teachers(summary: Mapping[str, Any]) -> list[str]:
    plain = summary["methods"].get(summary["baseline"])
    if plain is None or plain["teacher"] or plain["mean"] is None:
        return []
    metric = metric_name(summary["metric"])
    return [
        f"'{row['title']}' has {spread(row['mean'], None)} {metric}, no more than "
        f"'{plain['title']}' ({spread(plain['mean'], None)}), so students have nothing to learn "
        "from it: train it for longer or on more images."
        for row in summary["teachers"].values()
        if row["mean"] is not None and row["mean"] <= plain["mean"]
    ]


def _odd_shares(todo: Plan, summary: Mapping[str, Any]) -> list[str]:
    least, most = SHARES
    found = []
    for name, row in summary["methods"].items():
        lines = [
            line
            for run in todo.methods[name].values()
            if run.results is not None
            for line in read_metrics(run.folder)
        ]
        for method in row["learns_by"]:
            shares = [x for line in lines if (x := line.get(f"{method}/grad_share")) is not None]
            share = median(shares) if shares else None
            if share is None or least <= share <= most:
                continue
            change = "raise" if share < least else "lower"
            found.append(
                f"In '{row['title']}', the gradient of {method} is {share:.2g} times that of the "
                f"student's own losses: {change} its weight (DISTILL.{method.upper()}), or set "
                "DISTILL.GRAD_SHARE."
            )
    return found

"""Reasons to doubt a comparison: what to mend before its gains mean anything."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from dpk_det.comparison.plan import Plan
from dpk_det.comparison.report import metric_name, spread
from dpk_det.comparison.run import read_metrics
from dpk_det.comparison.run_notes import ENOUGH, time_share

SHARES = 0.1, 50.0
"""Outside of these, a method's gradient is too weak or too strong: in docs/results.md, tuned
weights give shares from 0.5 to 28."""


def doubts(todo: Plan, summary: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each teacher that knows too little, each control that trained for less
    time than a method that it is compared with, and each odd weight.

    Args:
        todo: the trainings; some may be unfinished.
        summary: rows as :func:`~dpk_det.comparison.summary.summarise` builds them: ``metric``,
            ``baseline``, ``teachers`` and ``methods``.
    """
    return [*_weak_teachers(summary), *_short_controls(summary), *_odd_shares(todo, summary)]


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


def _short_controls(summary: Mapping[str, Any]) -> list[str]:
    methods, found = summary["methods"], {}
    # Without equal_time, the only known times are those of the trainings.
    but = "" if summary["side_by_side"] else ", unless other load made the difference"
    for name, row in methods.items():
        share = time_share(methods, name) if row["gain_at_equal_time"] else None
        if share is not None and share < ENOUGH:
            text = f"{100 * share:.0f} % of the time of '{row['title']}'"
            found.setdefault(row["control"], []).append(text)
    return [
        f"'{methods[control]['title']}' trained for {', '.join(texts)}, whose control it is, so "
        f"that gain at equal time is too high: raise SOLVER.MAX_ITER of "
        f"'{methods[control]['title']}'{but}."
        for control, texts in found.items()
        # More steps are no use to a control that ended by TEST.PATIENCE.
        if not any(run.get("ended_early") for run in methods[control]["runs"].values())
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

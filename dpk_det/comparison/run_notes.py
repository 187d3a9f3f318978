"""What a report says of single trainings: resumed, ended early, as long as another or not."""

from collections.abc import Mapping
from typing import Any

ENOUGH = 0.98
"""Share of a method's training time that its control needs to count as trained as long."""


def inexact(row: Mapping[str, Any], seed: int | str) -> list[str]:
    """Return the steps, with reasons, after which a training was not resumed exactly."""
    resumed = row["runs"].get(seed, {}).get("resumed", [])
    return [
        f"step {x['step']}{f' ({why})' if (why := x.get('why')) else ''}"
        for x in resumed
        if not x["exact"]
    ]


def resumed_notes(rows: Mapping[str, Any]) -> list[str]:
    """Return a note that names the trainings that were not resumed exactly."""
    said = [
        f"'{row['title']}' with seed {seed} after {' and '.join(steps)}"
        for row in rows.values()
        for seed in row["runs"]
        if (steps := inexact(row, seed))
    ]
    if not said:
        return []
    return [
        f"†: resumed, but not as if it had never been interrupted: {'; '.join(said)}. From there "
        "on it is another run than its seed gives."
    ]


def early_notes(rows: Mapping[str, Any]) -> list[str]:
    """Return a note that names the trainings that ended before their last step."""
    said = [
        f"'{row['title']}' with seed {seed} after {run['iterations']} steps"
        for row in rows.values()
        for seed, run in row["runs"].items()
        if run.get("ended_early")
    ]
    if not said:
        return []
    return [
        f"ended early (TEST.PATIENCE): {'; '.join(said)}. Steps of a row are the mean over its "
        "seeds."
    ]


def time_share(methods: Mapping[str, Any], name: str) -> float | None:
    """Return the training time of a method's control, over the method's; None if unknown.

    Args:
        methods: rows by name, as :func:`~dpk_det.comparison.summary.summarise` builds them.
        name: name of a method with a control.
    """
    row, control = methods[name], methods[methods[name]["control"]]
    if not row["training_seconds"] or not control["training_seconds"]:
        return None
    return control["training_seconds"] / row["training_seconds"]


def how_control_trained(methods: Mapping[str, Any], name: str) -> str:
    """Say how a method's control trained: "trained at least as long without distilling".

    Args:
        methods: as for :func:`time_share`.
        name: as for :func:`time_share`.
    """
    share = time_share(methods, name)
    if share is None:
        how = "for an unknown time"
    else:
        how = "at least as long" if share >= ENOUGH else f"for {100 * share:.0f} % of the time"
    control = methods[methods[name]["control"]]
    return f"trained {how}" if control["learns_by"] else f"trained {how} without distilling"

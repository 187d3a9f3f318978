"""Plots of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dpk_det.comparison.report import metric_label
from dpk_det.comparison.run import Run, read_metrics
from dpk_det.files import whole_file

_ACCENT = "#1864ab"  # of rows that learn by DPK, also on the page
_GREY = "#8a8a85"


def plot_metric(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the metric, best first: a row per teacher or method, a dot per seed, a bar for the mean.

    Rows that learn by DPK are in colour. Dashed lines show the means of the methods that gains are
    measured against.

    Args:
        summary: from :func:`dpk_det.comparison.summary.summarise`; at least one row has a figure.
        path: PNG file to write.
    """
    rows = {**summary["teachers"], **summary["methods"]}
    baselines = {summary["baseline"], *(row.get("baseline") for row in rows.values())}
    order = sorted((name for name in rows if rows[name]["values"]), key=lambda x: -rows[x]["mean"])
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.3 * len(order)))
    for place, name in enumerate(order):
        row = rows[name]
        colour = _ACCENT if "dpk" in row.get("learns_by", ()) else _GREY
        values = list(row["values"].values())
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=5)
        axes.plot([row["mean"]] * 2, [place - 0.35, place + 0.35], color=colour, linewidth=2.5)
        if name in baselines:
            axes.axvline(row["mean"], color=_GREY, linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(order)), [_plain(rows[name]["title"]) for name in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel(metric_label(summary["metric"]))
    _save(figure, path)


def plot_time(summary: Mapping[str, Any], path: Path) -> bool:
    """Draw the metric against the training time: a point per method, a line per baseline.

    Args:
        summary: from :func:`dpk_det.comparison.summary.summarise`.
        path: PNG file to write.

    Returns:
        Whether a control has a time and a figure; otherwise no file is written.
    """
    methods = summary["methods"]
    points = {
        name: (row["training_seconds"] / 60, row["mean"])
        for name, row in methods.items()
        if row["training_seconds"] and row["mean"] is not None
    }
    controls = {row["control"] for row in methods.values()} & points.keys()
    lines: dict[str, set[tuple[float, float]]] = {}
    for name in controls:
        base = methods[name]["baseline"] or name  # a baseline may itself be a control
        lines.setdefault(base, set()).update(points[x] for x in (base, name) if x in points)
    if not lines:
        return False
    figure, axes = plt.subplots(figsize=(8, 5))
    for base, ends in lines.items():
        axes.plot(*zip(*sorted(ends), strict=True), "--", label=_plain(methods[base]["title"]))
    middle = (min(x for x, _ in points.values()) + max(x for x, _ in points.values())) / 2
    for name, point in points.items():
        axes.plot(*point, "s" if name in controls else "o", color="tab:gray")
        # A label must stay inside the figure.
        side, shift = ("left", 5) if point[0] <= middle else ("right", -5)
        axes.annotate(
            _plain(methods[name]["title"]),
            point,
            (shift, 5),
            textcoords="offset points",
            fontsize="small",
            horizontalalignment=side,
        )
    axes.set(xlabel="minutes of training", ylabel=metric_label(summary["metric"]))
    axes.legend(title="trained longer", fontsize="small")
    axes.margins(0.15)
    _save(figure, path)
    return True


def plot_curves(methods: Mapping[str, Sequence[Run]], metric: str, path: Path) -> bool:
    """Draw a metric over the steps, for methods that were evaluated at several steps.

    Args:
        methods: label to runs; the mean is drawn at steps where all runs have a value.
        metric: name of a figure in their metrics.json.
        path: PNG file to write.

    Returns:
        Whether there was a curve to draw; otherwise no file is written.
    """
    curves = {}
    for label, runs in methods.items():
        per_run = [
            {m["iteration"] + 1: m[metric] for m in read_metrics(run.folder) if metric in m}
            for run in runs
        ]
        shared = sorted(set.intersection(*map(set, per_run))) if per_run else []
        if len(shared) > 1:
            curves[label] = shared, [mean(values[step] for values in per_run) for step in shared]
    if not curves:
        return False
    figure, axes = plt.subplots(figsize=(8, 5))
    for label, (steps, values) in curves.items():
        axes.plot(steps, values, marker=".", label=_plain(label))
    axes.set(xlabel="step", ylabel=metric_label(metric))
    axes.legend(fontsize="small")
    _save(figure, path)
    return True


def plot_prior(runs: Mapping[str, Run], path: Path) -> bool:
    """Draw prior ratio and CKA of each level, and the losses, over the steps.

    Args:
        runs: label to run; runs without a prior ratio are left out.
        path: PNG file to write.

    Returns:
        Whether there was a run to draw; otherwise no file is written.
    """
    found = {}
    for label, run in runs.items():
        metrics = [m for m in read_metrics(run.folder) if "total_loss" in m]
        if metrics and any("/ratio_" in name for name in metrics[-1]):
            found[label] = metrics
    if not found:
        return False
    figure, (ratio_axes, cka_axes, loss_axes) = plt.subplots(1, 3, figsize=(15, 4))
    for label, metrics in found.items():
        label = _plain(label)
        steps = [m["iteration"] + 1 for m in metrics]
        methods = {name.partition("/")[0] for name in metrics[-1] if "/ratio_" in name}
        losses = {"total_loss", *(f"loss_{method}" for method in methods)}
        for name in metrics[-1]:
            method, _, quantity = name.partition("/")
            what, _, level = quantity.partition("_")
            axes = {"ratio": ratio_axes, "cka": cka_axes}.get(what) if method in methods else None
            if axes is not None:
                axes.plot(steps, [m.get(name) for m in metrics], label=f"{label} {level}")
            elif name in losses:
                loss_axes.plot(steps, [m.get(name) for m in metrics], label=f"{label}: {name}")
    for axes, title in ((ratio_axes, "prior ratio"), (cka_axes, "CKA"), (loss_axes, "loss")):
        axes.set(title=title, xlabel="step")
        if axes.has_data():
            axes.legend(fontsize="small")
    for axes in (ratio_axes, cka_axes):
        axes.set_ylim(-0.05, 1.05)
    loss_axes.set_yscale("log")
    _save(figure, path)
    return True


def _plain(title: str) -> str:
    return title.replace("$", r"\$")  # a plain $ begins a formula


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    try:
        with whole_file(path) as partial:
            figure.savefig(partial, dpi=100)
    finally:
        plt.close(figure)

"""The report of a comparison as one HTML file to look at, which needs no other file or network."""

import base64
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from detectron2.config import CfgNode
from jinja2 import Environment, PackageLoader

from dpk_det.architectures import distils
from dpk_det.comparison.matching import IOU
from dpk_det.comparison.moments import read_moments
from dpk_det.comparison.photos import THRESHOLD, Photos, compare_photos
from dpk_det.comparison.plan import Plan
from dpk_det.comparison.report import method_cells, metric_name, notes, p_value, spread, times
from dpk_det.files import write_whole

PAGE = "report.html"
CHANCE = 0.05
"""A gain of a higher p is not told from chance."""
_MOST_CLASSES = 30
# pictures that the page takes over, and what stands above them; it draws the metric itself
_PLOTS = {
    "time.png": "What the time of a training buys",
    "curves.png": "Along the training",
    "prior.png": "Prior, CKA and losses",
}
_ENVIRONMENT = Environment(
    loader=PackageLoader("dpk_det.comparison"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_page(
    todo: Plan,
    summary: Mapping[str, Any],
    configs: Mapping[str, CfgNode],
    plots: Mapping[str, str],
    output: Path,
) -> None:
    """Write report.html.

    Args:
        todo: the trainings. summary: of :func:`~.summary.summarise`. configs: row's name to its
            config. plots: PNG file in ``output`` to caption. output: folder to write to.

    Raises:
        UserError: when the file cannot be written.
    """
    names = contenders(summary, configs)
    photos, classes, moments = None, None, []
    if names:
        seed = _common_seed(todo, names)
        photos = _photos(todo, summary, configs, names, seed)
        classes = class_table(summary, names)
        moments = read_moments(todo.methods[names[1]][seed].folder)
    heads, cells = method_cells(summary)
    rows = summary["teachers"] | summary["methods"]
    learners = {name for name in summary["methods"] if distils(configs[name])}
    order = sorted(rows, key=lambda name: _or_least(rows[name]["mean"]), reverse=True)
    page = _ENVIRONMENT.get_template("report.html").render(
        summary=summary,
        metric=metric_name(summary["metric"]),
        headline=headline(summary, names),
        chart=_chart({name: rows[name] for name in order}, learners),
        heads=heads,
        table=[{"cells": cells[name], "distils": name in learners} for name in order],
        notes=notes(summary)[:-1],  # the command stands at the end
        photos=photos,
        threshold=THRESHOLD,
        iou=IOU,
        why_no_photos=(
            "There is nothing to show: the detections of the last evaluation are not in the "
            "trainings' folders."
            if names and not photos and "cls/" not in summary["metric"]
            else ""
        ),
        classes=classes,
        moments=moments,
        plots=[
            {"title": _PLOTS[name], "caption": caption, "source": _embedded(output / name)}
            for name, caption in plots.items()
            if name in _PLOTS
        ],
        rows=[rows[name] for name in order],
        version=version("dpk_det"),
    )
    write_whole(output / PAGE, page)


def contenders(summary: Mapping[str, Any], configs: Mapping[str, CfgNode]) -> list[str]:
    """The rows that are looked at closely.

    Returns:
        Names of the suite's baseline, of the best of the other students that distil and, where it
        has a row, of its teacher; nothing while one of the students is not trained.
    """
    methods = summary["methods"]
    measured = [name for name, row in methods.items() if row["mean"] is not None]
    plain = summary["baseline"]
    distilled = [name for name in measured if distils(configs[name]) and name != plain]
    if plain not in measured or not distilled:
        return []
    best = max(distilled, key=lambda name: methods[name]["mean"])
    teacher = methods[best]["teacher"]
    return [plain, best, *([teacher] if teacher in summary["teachers"] else [])]


def headline(summary: Mapping[str, Any], names: list[str]) -> list[str]:
    """What came out, in sentences: who is better, by how much, at what cost.

    Args:
        names: of :func:`contenders`.
    """
    methods, metric = summary["methods"], metric_name(summary["metric"])
    if not names:
        return ["No student that distils can be compared with the baseline yet."]
    plain, best = methods[names[0]], methods[names[1]]
    sentences = [
        f'The best distilled student, "{best["title"]}", has {spread(best["mean"], best["sd"])} '
        f'{metric}. "{plain["title"]}" has {spread(plain["mean"], plain["sd"])}.'
    ]
    for key, than, how in (
        ("gain", "baseline", "trained for as many steps"),
        ("gain_at_equal_time", "control", "trained without a teacher for at least as long"),
    ):
        gain = best[key]
        if gain:
            sentences.append(
                f"It gains {spread(gain['mean'], gain['sd'], signed=True)} over "
                f'"{methods[best[than]]["title"]}", {how}{_sure(gain)}.'
            )
    if best["relative_seconds"]:
        ratio = times(best["relative_seconds"])
        sentences.append(f'Its step takes {ratio} the time of a step of "{plain["title"]}".')
    first = max(
        (name for name in methods if methods[name]["mean"] is not None),
        key=lambda name: methods[name]["mean"],
    )
    if first != names[1]:
        row = methods[first]
        sentences.append(
            f'Best of all is "{row["title"]}", which does not distil, with '
            f"{spread(row['mean'], row['sd'])}."
        )
    return sentences


def _sure(gain: Mapping[str, Any]) -> str:
    if len(gain["seeds"]) == 1:
        return "; one seed alone proves nothing"
    p = gain["holm"]
    if p is None:
        return ""
    shown = p_value(p)
    shown = f"p {shown}" if shown.startswith("<") else f"p = {shown}"
    return f" ({shown})" if p < CHANCE else f", which may be chance ({shown})"


def _chart(rows: Mapping[str, Any], learners: set[str]) -> list[dict[str, Any]]:
    rows = {name: row for name, row in rows.items() if row["values"]}
    values = [value for row in rows.values() for value in row["values"].values()]
    if not values:
        return []
    low, high = min(values), max(values)
    # the dots stay within the chart
    scale = 96 / (high - low) if high > low else 0

    def place(value: float) -> float:
        return 2 + (value - low) * scale

    return [
        {
            "title": row["title"],
            "distils": name in learners,
            "dots": [place(value) for value in row["values"].values()],
            "mean": place(row["mean"]),
            "label": spread(row["mean"], row["sd"]),
        }
        for name, row in rows.items()
    ]


def class_table(summary: Mapping[str, Any], names: list[str]) -> dict[str, Any] | None:
    """AP of each class, mean over the seeds, most different first.

    Args:
        names: of :func:`contenders`.

    Returns:
        ``titles`` of the models, ``rows`` with ``name``, ``figures`` of the models and ``gain`` of
        the second, and how many were ``left_out``; None where no class was measured.
    """
    every = summary["teachers"] | summary["methods"]
    figures = [_of_classes(every[name]) for name in names]
    rows = []
    for name in dict.fromkeys(name for of in figures for name in of):
        values = [of.get(name) for of in figures]
        plain, distilled = values[:2]
        gain = None if plain is None or distilled is None else distilled - plain
        rows.append({"name": name, "figures": values, "gain": gain})
    if not rows:
        return None
    rows.sort(key=lambda row: abs(row["gain"] or 0), reverse=True)
    return {
        "titles": [every[name]["title"] for name in names],
        "rows": sorted(rows[:_MOST_CLASSES], key=lambda row: -(row["gain"] or 0)),
        "left_out": max(len(rows) - _MOST_CLASSES, 0),
    }


def _of_classes(row: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in row["runs"].values():
        for key, value in run["results"].get("bbox", {}).items():
            if key.startswith("AP-") and value is not None and value == value:
                found.setdefault(key.removeprefix("AP-"), []).append(value)
    return {name: mean(values) for name, values in found.items()}


def _common_seed(todo: Plan, names: list[str]) -> int:
    """The first seed that both students have, else the distilled one's first."""
    done = [
        [seed for seed, run in todo.methods[name].items() if run.results is not None]
        for name in names[:2]
    ]
    return next((seed for seed in done[1] if seed in done[0]), done[1][0])


def _photos(
    todo: Plan,
    summary: Mapping[str, Any],
    configs: Mapping[str, CfgNode],
    names: list[str],
    seed: int,
) -> Photos | None:
    rows = summary["teachers"] | summary["methods"]
    runs = {rows[name]["title"]: todo.methods[name][seed] for name in names[:2]}
    for name in names[2:]:
        (run,) = todo.rows[name].values()  # a teacher has one
        runs[rows[name]["title"]] = run
    return compare_photos(runs, configs[names[1]], seed)


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _or_least(value: float | None) -> float:
    return float("-inf") if value is None else value

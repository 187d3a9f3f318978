"""The report of a comparison as one HTML file, which needs no other file and no network."""

from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

from detectron2.config import CfgNode
from jinja2 import Environment, PackageLoader

from dpk_det.architectures import distils
from dpk_det.comparison.matching import IOU
from dpk_det.comparison.moments import read_moments
from dpk_det.comparison.photos import THRESHOLD, Photos, compare_photos
from dpk_det.comparison.pictures import embedded
from dpk_det.comparison.plan import Plan
from dpk_det.comparison.report import method_cells, metric_name, notes, p_value, spread, times
from dpk_det.comparison.run_notes import how_control_trained
from dpk_det.files import write_whole

PAGE = "report.html"
CHANCE = 0.05
"""A gain with a higher p-value may be chance."""
_MOST_CLASSES = 30
# plots that the page shows -> their titles; the page draws the metric itself
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
        todo: the trainings.
        summary: from :func:`~.summary.summarise`.
        configs: row's name to its config.
        plots: PNG file in ``output`` to caption.
        output: folder to write to.

    Raises:
        UserError: when the file cannot be written.
    """
    pair = contenders(summary, configs)
    photos, classes, moments = None, None, []
    if pair:
        seed = _common_seed(todo, pair)
        photos = _photos(todo, summary, configs, pair, seed)
        classes = class_table(summary, _shown(summary, pair), pair)
        moments = read_moments(todo.methods[pair[1]][seed].folder)
    heads, cells = method_cells(summary)
    rows = summary["teachers"] | summary["methods"]
    learners = {name for name in summary["methods"] if distils(configs[name])}
    order = sorted(rows, key=lambda name: _or_least(rows[name]["mean"]), reverse=True)
    page = _ENVIRONMENT.get_template("report.html").render(
        summary=summary,
        metric=metric_name(summary["metric"]),
        headline=headline(summary, pair, learners),
        chart=_chart({name: rows[name] for name in order}, learners),
        ends=_ends(rows),
        heads=heads,
        table=[{"cells": cells[name], "distils": name in learners} for name in order],
        notes=notes(summary),
        photos=photos,
        threshold=THRESHOLD,
        iou=IOU,
        why_no_photos=(
            "There is nothing to show: the detections of the last evaluation are not in the "
            "trainings' folders."
            if pair and not photos and "cls/" not in summary["metric"]
            else ""
        ),
        classes=classes,
        pair=[rows[name]["title"] for name in pair or ()],
        moments=moments,
        plots=_plots(plots, output),
        rows=[rows[name] for name in order],
        version=_version(),
    )
    write_whole(output / PAGE, page)


def contenders(
    summary: Mapping[str, Any], configs: Mapping[str, CfgNode]
) -> tuple[str, str] | None:
    """Return the names (baseline, best student that distils), or None until both are measured."""
    methods = summary["methods"]
    measured = {name for name, row in methods.items() if row["mean"] is not None}
    pairs = [
        (methods[name]["baseline"], name)
        for name in methods
        if name in measured and distils(configs[name]) and methods[name]["baseline"] in measured
    ]
    return max(pairs, key=lambda pair: methods[pair[1]]["mean"], default=None)


def _shown(summary: Mapping[str, Any], pair: tuple[str, str]) -> list[str]:
    """Return the names of the shown models: the suite's baseline, the pair, the teacher."""
    teacher = summary["methods"][pair[1]]["teacher"]
    names = [summary["baseline"], *pair, *([teacher] if teacher in summary["teachers"] else [])]
    rows = summary["teachers"] | summary["methods"]
    return [
        name for name in dict.fromkeys(names) if name in rows and rows[name]["mean"] is not None
    ]


def headline(
    summary: Mapping[str, Any], pair: tuple[str, str] | None, learners: Collection[str]
) -> list[str]:
    """Return the result in sentences: which student is better, by how much, at what cost.

    Args:
        summary: from :func:`~.summary.summarise`.
        pair: from :func:`contenders`.
        learners: names of the methods that distil.
    """
    methods, metric = summary["methods"], metric_name(summary["metric"])
    if pair is None:
        return ["No student that distils can be compared with its baseline yet."]
    best = methods[pair[1]]
    sentences = [
        f'The best student that distils is "{best["title"]}": {spread(best["mean"], best["sd"])} '
        f"{metric}."
    ]
    for key, than in (("gain", "baseline"), ("gain_at_equal_time", "control")):
        gain = best[key]
        if gain:
            how = f", which {how_control_trained(methods, pair[1])}" if than == "control" else ""
            sentences.append(
                f"That is {spread(gain['mean'], gain['sd'], signed=True)} against "
                f'"{methods[best[than]]["title"]}"{how}{_sure(gain)}.'
            )
    plain = methods.get(summary["baseline"])  # --only may have left it out
    if plain and summary["baseline"] not in pair and plain["mean"] is not None:
        sentences.append(f'"{plain["title"]}" has {spread(plain["mean"], plain["sd"])}.')
    if plain and best["relative_seconds"]:
        ratio = times(best["relative_seconds"])
        sentences.append(f'Its step takes {ratio} the time of a step of "{plain["title"]}".')
    first = max(
        (name for name in methods if methods[name]["mean"] is not None),
        key=lambda name: methods[name]["mean"],
    )
    if first not in learners:
        row = methods[first]
        sentences.append(
            f'Best of all is "{row["title"]}", which does not distil: '
            f"{spread(row['mean'], row['sd'])}."
        )
    return sentences


def _sure(gain: Mapping[str, Any]) -> str:
    if len(gain["seeds"]) == 1:
        return " (one seed: not proven)"
    p = gain["holm"]
    if p is None:
        return ""
    shown = p_value(p)
    shown = f"p {shown}" if shown.startswith("<") else f"p = {shown}"
    return f" ({shown})" if p < CHANCE else f", which may be chance ({shown})"


def _chart(rows: Mapping[str, Any], learners: set[str]) -> list[dict[str, Any]]:
    rows = {name: row for name, row in rows.items() if row["values"]}
    low, high = _ends(rows) or (0.0, 0.0)
    # Margins keep the dots inside the chart.
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


def _ends(rows: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the lowest and the highest figure of all trainings."""
    values = [value for row in rows.values() for value in row["values"].values()]
    return (min(values), max(values)) if values else None


def class_table(
    summary: Mapping[str, Any], names: list[str], pair: tuple[str, str]
) -> dict[str, Any] | None:
    """Return AP per class, mean over the seeds, of the classes that differ most, by gain.

    Args:
        names: names of the rows that are shown.
        pair: from :func:`contenders`, among them.

    Returns:
        ``titles`` of the models; ``best``, the place of the pair's second in them; ``rows`` with
        ``name``, ``figures`` of the models and ``gain`` of the second; ``most``, the highest
        figure; the number of classes ``left_out``. None if no class was measured.
    """
    every = summary["teachers"] | summary["methods"]
    figures = [_of_classes(every[name]) for name in names]
    rows = []
    for name in dict.fromkeys(name for of in figures for name in of):
        values = [of.get(name) for of in figures]
        before, after = (values[names.index(one)] for one in pair)
        gain = None if before is None or after is None else after - before
        rows.append({"name": name, "figures": values, "gain": gain})
    if not rows:
        return None
    rows.sort(key=lambda row: abs(row["gain"] or 0), reverse=True)
    return {
        "titles": [every[name]["title"] for name in names],
        "best": names.index(pair[1]),
        "most": max(value for row in rows for value in row["figures"] if value is not None),
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


def _common_seed(todo: Plan, pair: tuple[str, str]) -> int:
    """Return the first seed that both students have, otherwise the second's first seed."""
    done = [
        [seed for seed, run in todo.methods[name].items() if run.results is not None]
        for name in pair
    ]
    return next((seed for seed in done[1] if seed in done[0]), done[1][0])


def _photos(
    todo: Plan,
    summary: Mapping[str, Any],
    configs: Mapping[str, CfgNode],
    pair: tuple[str, str],
    seed: int,
) -> Photos | None:
    rows = summary["teachers"] | summary["methods"]
    runs = {}
    dataset = configs[pair[1]].DATASETS.TEST
    for name in _shown(summary, pair):
        if name in configs and configs[name].DATASETS.TEST != dataset:
            continue  # such as a teacher with other datasets
        of_seeds = todo.rows[name]
        runs[rows[name]["title"]] = of_seeds.get(seed) or next(iter(of_seeds.values()))
    titles = tuple(rows[name]["title"] for name in pair)
    return compare_photos(runs, titles, configs[pair[1]], seed)


def _version() -> str:
    try:
        return version("dpk_det")
    except PackageNotFoundError:  # a clone that is not installed
        return "as cloned"


def _plots(plots: Mapping[str, str], output: Path) -> list[dict[str, str]]:
    return [
        {
            "title": _PLOTS[name],
            "caption": caption,
            "source": embedded((output / name).read_bytes(), "png"),
        }
        for name, caption in plots.items()
        if name in _PLOTS
    ]


def _or_least(value: float | None) -> float:
    return float("-inf") if value is None else value

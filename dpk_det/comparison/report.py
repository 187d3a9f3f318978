"""The report of a comparison in Markdown: a table of methods, and what its columns mean."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from dpk_det.comparison.run_notes import (
    early_notes,
    how_control_trained,
    inexact,
    resumed_notes,
)

# task -> prefix of its metrics in a table, and in a sentence
_TASKS = {"bbox": ("", "box "), "segm": ("mask ", "mask "), "keypoints": ("keypoint ",) * 2}
# dataset, if there are several; task; figure
_METRIC = re.compile(r"(?:(.+)/)?(bbox|segm|keypoints|cls)/(.+)")
# metric of classifiers -> its name, and its meaning
_SHARES = {
    "top1": ("top-1", "share of images whose class is the likeliest, in percent"),
    "top5": ("top-5", "share of images whose class is among the five likeliest, in percent"),
}


def report_text(summary: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """Return the whole report.

    Args:
        summary: from :func:`dpk_det.comparison.summary.summarise`.
        plots: file name, beside the report, to caption.
    """
    parts = [f"# {summary['title']}", summary["description"].strip(), _state(summary)]
    parts += [f"**{doubt}**" for doubt in summary["doubts"]]
    parts.append(method_table(summary))
    parts.append("\n".join(f"- {note}" for note in [*notes(summary), "Command:"]))
    parts.append(f"    {summary['command']}")
    parts += [f"![{name}]({name})\n\n{caption}" for name, caption in plots.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def method_table(summary: Mapping[str, Any]) -> str:
    """Return a Markdown table of :func:`method_cells`."""
    headers, rows = method_cells(summary)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows.values()]
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def method_cells(summary: Mapping[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the table of a comparison, without its blank columns.

    Returns:
        The columns' heads, and the cells of each teacher and method by its name.
    """
    metric = metric_label(summary["metric"])
    second = metric_label(summary["secondary"] or "")
    headers = ["", "seeds", metric, second, "gain", "over", "95 %", "p"]
    headers += ["gain at equal time", "95 %", "p", "step time", "memory"]
    headers.append(f"{metric_name(summary['metric'])} of each seed")
    rows = {}
    for name, row in [*summary["teachers"].items(), *summary["methods"].items()]:
        gain, honest = row.get("gain") or {}, row.get("gain_at_equal_time") or {}
        values = row["values"]
        # Methods show missing seeds too, so that each seed has the same place in all rows.
        seeds = summary["seeds"] if "gain" in row else [seed for seed in values if seed != "given"]
        rows[name] = [
            row["title"],
            "" if _is_given(row) else str(len(values)),
            spread(row["mean"], row["sd"]),
            spread(row["secondary_mean"], row["secondary_sd"]),
            spread(gain.get("mean"), gain.get("sd"), signed=True),
            summary["methods"][row["baseline"]]["title"] if gain else "",
            _interval(gain.get("interval")),
            p_value(gain.get("holm")),
            spread(honest.get("mean"), honest.get("sd"), signed=True),
            _interval(honest.get("interval")),
            p_value(honest.get("holm")),
            times(row.get("relative_seconds")),
            times(row.get("relative_memory")),
            # Commas would split the cell if the table is pasted as CSV.
            " ".join(_value(row, seed) for seed in seeds),
        ]
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows.values())]
    cells = {name: [row[i] for i in kept] for name, row in rows.items()}
    return [headers[i] for i in kept], cells


def _is_given(row: Mapping[str, Any]) -> bool:
    return row.get("weights") is not None


def _value(row: Mapping[str, Any], seed: int | str) -> str:
    if seed not in row["values"]:
        return "-"
    return f"{row['values'][seed]:.1f}{'†' if inexact(row, seed) else ''}"


def spread(mean: float | None, sd: float | None, signed: bool = False) -> str:
    """Return ``mean ± sd``, or ``mean`` without sd, or "" without mean."""
    if mean is None:
        return ""
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if sd is None else f"{text} ± {sd:.1f}"


def metric_name(metric: str) -> str:
    """Return the usual name of a metric: "AP" for "bbox/AP", "mask AP" for "segm/AP", "top-1" for
    "cls/top1", "AP on x" for "x/bbox/AP".
    """
    parts = _METRIC.fullmatch(metric)
    if not parts:
        return metric.rpartition("/")[2]
    dataset, task, name = parts.groups()
    name = _SHARES[name][0] if task == "cls" and name in _SHARES else name
    return f"{_TASKS.get(task, ('',))[0]}{name}{f' on {dataset}' if dataset else ''}"


def metric_label(metric: str) -> str:
    """Return a metric's name for a column head or an axis: "AP", "top-1, %"."""
    parts = _METRIC.fullmatch(metric)
    return f"{metric_name(metric)}, %" if parts and parts[2] == "cls" else metric_name(metric)


def p_value(p: float | None) -> str:
    """Format a p-value for a table."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:+.1f} to {ends[1]:+.1f}"


def times(ratio: float | None) -> str:
    """Format a ratio for a table: "1.66x"."""
    return "" if ratio is None else f"{ratio:.2f}x"


def _state(summary: Mapping[str, Any]) -> str:
    if summary["finished"] == summary["trainings"]:
        return ""
    failed = f"; failed: {', '.join(summary['failed'])}" if summary["failed"] else ""
    return f"**{summary['finished']} of {summary['trainings']} trainings are done{failed}.**"


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Return notes: the meaning of the columns, and how the figures were made."""
    methods, teachers = summary["methods"], summary["teachers"]
    said = [_metric_note(summary["metric"])]
    if any(row["sd"] is not None for row in methods.values()):
        said.append("±: standard deviation of a sample over the seeds.")
    gains = [row["gain"] for row in methods.values() if row["gain"]]
    if gains:
        said.append(
            "gain: over the method in the next column, mean of the differences seed by seed, over "
            "the seeds that both have."
        )
    honest = [row["gain_at_equal_time"] for row in methods.values() if row["gain_at_equal_time"]]
    said += _control_notes(methods)
    if any(gain["interval"] for gain in gains + honest):
        said.append("95 %: interval of confidence of the mean gain in the column before it.")
    for kind, found in (("gain", gains), ("gain at equal time", honest)):
        if count := sum(gain["holm"] is not None for gain in found):
            said.append(
                f"p behind the {kind}: of a two-sided paired t-test over those seeds, corrected "
                f"for {count} comparison{'s' if count > 1 else ''} by Holm's method."
            )
    baseline = methods.get(summary["baseline"], {}).get("title")
    if any(row["relative_seconds"] for row in methods.values()):
        how = (
            "They were measured side by side before the trainings."
            if summary["side_by_side"]
            else "Trainings that share a machine slow one another."
        )
        said.append(
            f"step time: median seconds of a training step, over that of '{baseline}'. {how}"
        )
    if any(row["relative_memory"] for row in methods.values()):
        gpus = [machine["gpu"] for machine in summary["machines"]]
        where = "GPU memory" if all(gpus) else "memory of the whole process, libraries included,"
        said.append(f"memory: peak {where} over that of '{baseline}'.")
    said.append(f"Schedule: {_schedule(methods)}.")
    said += _blank_notes(teachers | methods, summary["metric"])
    said += [_teacher_note(row) for row in teachers.values()]
    for title, weights in summary["given_teachers"].items():
        said.append(f"{title}: neither trained nor evaluated here, weights {_weights(weights)}.")
    said.append(
        f"Seeds: {', '.join(map(str, summary['seeds']))}; a seed is the same for all methods."
    )
    said += early_notes(methods | teachers) + resumed_notes(methods | teachers)
    said.append(f"Parameters: {_parameters(methods | teachers)}.")
    said += [f"Machine: {_machine(machine)}." for machine in summary["machines"]]
    return said


def _blank_notes(rows: Mapping[str, Any], metric: str) -> list[str]:
    blank = [f"'{row['title']}'" for row in rows.values() if row["runs"].keys() - row["values"]]
    return [
        f"{title}: {metric_name(metric)} of a training could not be measured, as when nothing at "
        "all is detected; see train.log in its folder."
        for title in blank
    ]


def _control_notes(methods: Mapping[str, Any]) -> list[str]:
    found: dict[str, dict[str, str]] = {}
    for name, row in methods.items():
        if row["gain_at_equal_time"]:
            how = how_control_trained(methods, name)
            found.setdefault(row["control"], {})[row["title"]] = how
    return [
        f"gain at equal time: over '{methods[control]['title']}', {_steps(methods[control])}: "
        f"{_grouped(said)}."
        for control, said in found.items()
    ]


def _metric_note(metric: str) -> str:
    parts = _METRIC.fullmatch(metric)
    task, name = parts.groups()[1:] if parts else ("", metric)
    if task in _TASKS and name == "AP":
        what = f"COCO's {_TASKS[task][1]}AP (mean over IoU or OKS 0.50 to 0.95), in points"
    elif task == "cls" and name in _SHARES:
        what = _SHARES[name][1]
    else:
        what = f"{metric} of the evaluation at the end of training"
    return f"{metric_name(metric)}: {what}."


def _teacher_note(row: Mapping[str, Any]) -> str:
    if not _is_given(row):
        seeds = ", ".join(map(str, row["runs"]))
        return f"{row['title']}: {_steps(row)}{f', seed {seeds}' if seeds else ''}."
    results = row["runs"].get("given")
    datasets = ((results or {}).get("teacher") or {}).get("datasets", [])
    where = f", evaluated on {' and '.join(datasets)}" if datasets else ""
    return f"{row['title']}: not trained here, weights {_weights(row['weights'])}{where}."


def _weights(weights: str) -> str:
    return weights or "of the model zoo"


def _steps(row: Mapping[str, Any]) -> str:
    return f"{row['iterations']} steps of {row['images_per_step']} images"


def _grouped(said: Mapping[str, str]) -> str:
    # a text that several rows share appears once
    groups: dict[str, list[str]] = {}
    for title, text in said.items():
        groups.setdefault(text, []).append(title)
    quoted = ((text, [f"'{title}'" for title in titles]) for text, titles in groups.items())
    return "; ".join(f"{text} ({', '.join(titles)})" for text, titles in quoted)


def _schedule(methods: Mapping[str, Any]) -> str:
    said = {row["title"]: _steps(row) for row in methods.values()}
    if len(set(said.values())) == 1:
        return f"{next(iter(said.values()))} for every student"
    return f"the students' schedules differ: {_grouped(said)}"


def _parameters(rows: Mapping[str, Any]) -> str:
    known = [row for row in rows.values() if row["parameters"]]
    return _grouped({row["title"]: str(row["parameters"]) for row in known})


def _machine(machine: Mapping[str, Any]) -> str:
    gpu = machine["gpu"] or "no GPU"
    return (
        f"{gpu}, {machine['cores']} CPU cores, CPU threads a training: {machine['threads']}, "
        f"{machine['platform']}, Python {machine['python']}, torch {machine['torch']}, "
        f"Detectron2 {machine['detectron2']}"
    )

"""The numbers of a comparison: the content of its results.json."""

from collections.abc import Collection, Mapping
from statistics import mean, median, stdev
from typing import Any

from detectron2.config import CfgNode
from scipy.stats import ttest_rel

from dpk_det.architectures import distils
from dpk_det.comparison.doubts import doubts
from dpk_det.comparison.equal_time import distilling_steps, training_time
from dpk_det.comparison.plan import Plan
from dpk_det.comparison.run import Run
from dpk_det.comparison.statistics import holm, mean_interval
from dpk_det.engine.metric_names import metric_names
from dpk_det.engine.trainer import RESULTS
from dpk_det.errors import find
from dpk_det.pairing.scaling import scale_to_processes


def summarise(
    plan: Plan, configs: Mapping[str, CfgNode], command: str, failed: Collection[str] = ()
) -> dict[str, Any]:
    """Collect the results of the finished trainings of a plan.

    Args:
        plan: the trainings; some may be unfinished.
        configs: row's name to its config.
        command: command line of the comparison.
        failed: names of failed runs.

    Returns:
        A dict that JSON can hold. ``teachers`` and ``methods`` have a row per name, see
        :func:`_row`. A teacher also has ``weights`` (None if it is trained here). A method also has
        ``gain`` over its ``baseline`` and ``gain_at_equal_time`` over its ``control`` (see
        :func:`paired_gain`; None without common seeds), ``training_seconds`` (None if unknown), and
        ``relative_seconds`` and ``relative_memory``: medians over the seeds (or seconds measured
        side by side), divided by the baseline's. ``doubts``: see :func:`~.doubts.doubts`.

    Raises:
        UserError: when no finished student has the suite's metric, or its secondary metric.
    """
    suite = plan.suite
    configs = {name: scale_to_processes(cfg) for name, cfg in configs.items()}
    done = {
        name: {seed: run for seed, run in runs.items() if run.results is not None}
        for name, runs in plan.rows.items()
    }
    for metric in filter(None, (suite.metric, suite.secondary)):
        _check_measured(plan, configs, metric)
    teachers = {
        name: _row(plan, teacher, done[name], configs.get(name)) | {"weights": teacher.weights}
        for name, teacher in suite.teachers.items()
        if name in plan.rows
    }
    machines = [run.results.get("machine") for runs in done.values() for run in runs.values()]
    summary = {
        "title": suite.title,
        "description": suite.description,
        "suite": str(suite.path),
        "command": command,
        "metric": suite.metric,
        "secondary": suite.secondary,
        "seeds": list(plan.seeds),
        "baseline": suite.baseline,
        "side_by_side": bool(suite.step_seconds),
        "trainings": len(plan.runs),
        "finished": sum(map(len, done.values())),
        "failed": sorted(failed),
        "machines": [x for i, x in enumerate(machines) if x and x not in machines[:i]],
        # teachers that are neither trained nor evaluated here
        "given_teachers": {
            x.title: x.weights
            for name, x in suite.teachers.items()
            if x.weights is not None and name not in plan.evaluations
        },
        "teachers": teachers,
        "methods": _methods(plan, configs, done),
    }
    return {**summary, "doubts": doubts(plan, summary)}


def _methods(
    plan: Plan, configs: Mapping[str, CfgNode], done: Mapping[str, Mapping[int | str, Run]]
) -> dict[str, dict[str, Any]]:
    suite = plan.suite
    rows = {
        name: _row(plan, suite.methods[name], done[name], configs[name]) for name in plan.methods
    }
    reference = rows.get(suite.baseline, {})
    seconds = {name: row["seconds_per_step"] for name, row in rows.items()} | suite.step_seconds
    for name, row in rows.items():
        method = suite.methods[name]
        baseline, control = rows.get(method.baseline), rows.get(method.control)
        row |= {
            "learns_by": list(configs[name].DISTILL.METHODS) if distils(configs[name]) else [],
            "teacher": method.teacher,
            "baseline": method.baseline,
            "control": method.control,
            "gain": baseline and paired_gain(row["values"], baseline["values"]),
            "gain_at_equal_time": control and paired_gain(row["values"], control["values"]),
            "training_seconds": _training_seconds(plan, configs, name, seconds, row["iterations"]),
            "relative_seconds": _ratio(seconds[name], seconds.get(suite.baseline)),
            "relative_memory": _ratio(row["peak_memory_mb"], reference.get("peak_memory_mb")),
        }
    for kind in ("gain", "gain_at_equal_time"):
        gains = {name: row[kind] for name, row in rows.items() if row[kind]}
        for name, p in holm({n: g["p"] for n, g in gains.items() if g["p"] is not None}).items():
            gains[name]["holm"] = p
    return rows


def _training_seconds(
    plan: Plan,
    configs: Mapping[str, CfgNode],
    name: str,
    seconds: Mapping[str, float | None],
    steps: int,
) -> float | None:
    if not seconds[name]:
        return None
    if name not in plan.suite.step_seconds and 2 * distilling_steps(configs[name], steps) < steps:
        return None  # the training's median is the time of a step after DISTILL.STOP_AT
    return training_time(plan.suite, configs, name, seconds, steps)


def _row(
    plan: Plan, entry: Any, done: Mapping[int | str, Run], cfg: CfgNode | None
) -> dict[str, Any]:
    # cfg is None for a teacher that is not trained here.
    results = {seed: run.results for seed, run in done.items()}
    made = [r["iterations"] for r in results.values() if r.get("iterations")]

    def measured(metric: str | None) -> dict[int | str, float]:
        figures = {seed: run.figures.get(metric) for seed, run in done.items()}
        # Deviations and gains use only seeds where the metric could be measured.
        return {seed: figure for seed, figure in figures.items() if figure is not None}

    values, second = measured(plan.suite.metric), measured(plan.suite.secondary)
    return {
        "title": entry.title,
        "config": entry.config,
        "opts": entry.opts,
        "iterations": round(mean(made)) if made else cfg and cfg.SOLVER.MAX_ITER,
        "images_per_step": cfg and cfg.SOLVER.IMS_PER_BATCH,
        "parameters": next((r.get("parameters") for r in results.values()), None),
        "values": values,
        "mean": _mean(values),
        "sd": _deviation(values),
        "secondary_mean": _mean(second),
        "secondary_sd": _deviation(second),
        "seconds_per_step": _median(results, "seconds_per_step"),
        "peak_memory_mb": _median(results, "peak_memory_mb"),
        "runs": {seed: {"folder": str(run.folder), **results[seed]} for seed, run in done.items()},
    }


def paired_gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any] | None:
    """Compute the gain of one method over another, seed by seed.

    Args:
        ours: seed to figure of the one method.
        theirs: seed to figure of the other method.

    Returns:
        None without a common seed. Otherwise ``seeds`` that both have; ``mean`` and ``sd`` (of a
        sample) of the differences; ``interval``, the confidence interval of the mean; ``p`` of the
        two-sided paired t-test; ``holm``, None until p is corrected for several comparisons. sd,
        interval and p are None for one seed. p is also None if all differences are equal, because
        the test is then undefined.
    """
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    differences = {seed: ours[seed] - theirs[seed] for seed in seeds}
    sd = _deviation(differences)
    p = None
    if sd is not None and sd > 1e-9:  # smaller values are rounding errors
        p = float(ttest_rel([ours[s] for s in seeds], [theirs[s] for s in seeds]).pvalue)
    return {
        "seeds": seeds,
        "mean": mean(differences.values()),
        "sd": sd,
        "interval": mean_interval([*differences.values()]),
        "p": p,
        "holm": None,
    }


def _check_measured(plan: Plan, configs: Mapping[str, CfgNode], metric: str) -> None:
    # An evaluator may leave a metric of its own out, such as mask AP when nothing was found.
    done = [
        (run, configs[name])  # only students: a teacher may be of another kind
        for name, runs in plan.methods.items()
        for run in runs.values()
        if run.results is not None
    ]
    if any(metric in run.figures for run, _ in done):
        return
    for run, cfg in done:
        if metric not in (metric_names(cfg) or ()):
            find(run.figures, metric, f"metric in {run.folder / RESULTS}")


def _mean(values: Mapping[int, float]) -> float | None:
    return mean(values.values()) if values else None


def _deviation(values: Mapping[int, float]) -> float | None:
    return stdev(values.values()) if len(values) > 1 else None


def _median(results: Mapping[int, Mapping[str, Any]], key: str) -> float | None:
    values = [r[key] for r in results.values() if r.get(key)]
    return median(values) if values else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value and reference else None

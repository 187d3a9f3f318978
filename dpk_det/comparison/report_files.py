"""The files of a report: Markdown, numbers and plots."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from dpk_det.comparison.page import write_page
from dpk_det.comparison.plan import Plan
from dpk_det.comparison.plots import plot_curves, plot_metric, plot_prior, plot_time
from dpk_det.comparison.report import method_table, metric_name, report_text
from dpk_det.comparison.summary import summarise
from dpk_det.engine.trainer import RESULTS
from dpk_det.errors import UserError
from dpk_det.files import write_whole

REPORT = "report.md"


def write_report(
    todo: Plan, configs: Mapping[str, CfgNode], output: Path, command: str, failed: Sequence[str]
) -> str:
    """Write report.md, report.html, results.json and the plots, unless no run is finished.

    Args:
        todo: the trainings.
        configs: row's name to its config.
        output: folder to write to.
        command: command line that the report shows.
        failed: names of failed runs.

    Returns:
        The table, or "" if no run is finished.

    Raises:
        UserError: when no file can be written, or no student has the suite's metric.
    """
    summary = summarise(todo, configs, command, failed)
    if not summary["finished"]:
        return ""
    write_whole(output / RESULTS, json.dumps(summary, indent=2) + "\n")
    metric, seed = metric_name(summary["metric"]), todo.seeds[0]
    titles = {n: row["title"] for n, row in (summary["teachers"] | summary["methods"]).items()}
    finished = {
        titles[name]: [run for run in runs.values() if run.results is not None]
        for name, runs in todo.rows.items()
    }
    first = {titles[name]: runs[seed] for name, runs in todo.methods.items() if runs[seed].results}
    plots = {}
    if any(row["values"] for row in (summary["teachers"] | summary["methods"]).values()):
        picture = re.sub(r"\W+", "-", metric.lower()) + ".png"  # ap.png, mask-ap.png, top-1.png
        plot_metric(summary, output / picture)
        plots[picture] = (
            f"{metric}, best first, DPK in colour: a dot per seed, a bar for their mean. Dashed "
            "lines are the means of the methods that gains are measured against."
        )
    if plot_time(summary, output / "time.png"):
        plots["time.png"] = (
            f"{metric} against the time of a training (steps times seconds of a step), mean over "
            "the seeds. A line joins a baseline with itself, trained longer: what is below the "
            "line gains nothing over that."
        )
    if plot_curves(finished, summary["metric"], output / "curves.png"):
        plots["curves.png"] = f"{metric} over the steps, mean over the seeds."
    if plot_prior(first, output / "prior.png"):
        plots["prior.png"] = (
            f"Prior ratio and CKA of each level, and the losses, with seed {seed}; the total loss "
            "includes the others."
        )
    write_whole(output / REPORT, report_text(summary, plots))
    try:
        write_page(todo, summary, configs, plots, output)
    except UserError:
        raise
    except Exception:  # The page reads images of many sources; a failure must not end trainings.
        logging.getLogger("dpk_det").warning("The page could not be made.", exc_info=True)
    return method_table(summary)

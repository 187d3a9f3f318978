"""The comparison command: trains teachers and every method with every seed, and reports."""

import argparse
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.errors import UserError
from dpk_det.files import write_whole

from .launch import exit_on_user_error
from .plan import Plan, plan
from .plots import plot_curves, plot_metric, plot_prior
from .report import method_table, metric_name, report_text
from .runs import Run, check_config, make_slots, train_all
from .suite import read_suite
from .suite_configs import load_configs
from .summary import summarise
from .trainer import RESULTS

REPORT = "report.md"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``sys.argv`` when none is given."""
    parser = argparse.ArgumentParser(
        description="Train the teachers of a suite and every method with every seed, and report. "
        "Called again, it skips what is done and resumes what was interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("suite", type=Path, help="YAML file, such as configs/compare/demo.yaml")
    parser.add_argument(
        "--output", type=Path, help="where the report goes (default: output/NAME OF THE SUITE)"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        help="where the trainings go; suites that share it share trainings of the same name "
        "(default: OUTPUT/runs)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="instead of the suite's")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="METHOD", help="train and report only these"
    )
    parser.add_argument(
        "--workers", type=int, help="trainings at a time (default: one a GPU; without a GPU two)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of each training (default: 1)"
    )
    parser.add_argument(
        "--gpus",
        nargs="+",
        default=[],
        metavar="GPU",
        help="GPUs to use, as CUDA_VISIBLE_DEVICES counts them (default: all that are visible)",
    )
    parser.add_argument(
        "--report-only", action="store_true", help="train nothing, report what is finished"
    )
    return parser.parse_args(argv)


def compare(
    todo: Plan,
    output: Path,
    slots: Sequence[Mapping[str, str]] | None,
    command: str,
    say: Callable[[str], None] = print,
) -> str:
    """Train what is not trained yet; write the report after each training that ends.

    Args:
        todo: the trainings. output: folder of the report, its plots and results.json.
        slots: see :func:`dpk_det.engine.runs.train_all`. None: train nothing.
        command: that the report shows. say: gets the lines of progress.

    Returns:
        The table of the report.

    Raises:
        UserError: for a mistake in a config, before any training; when trainings failed, after
            all others; when there is nothing to report.
    """
    configs = load_configs(todo, trains=slots is not None)
    failed: list[str] = []

    def update(run: Run) -> None:
        if run.results is None:
            failed.append(run.name)
        try:
            report()
        except (
            UserError
        ) as e:  # a full disk, say: no reason to end trainings; told again at the end
            say(f"The report could not be written ({e})")

    def report() -> str:
        return write_report(todo, configs, output, command, failed)

    if slots is None:
        for run in todo.runs:
            check_config(run, any_machine=True)
    else:
        _draw(configs.values())
        try:
            train_all(todo.runs, slots, say, update)
        except (KeyboardInterrupt, SystemExit):
            report()
            raise
    table = report()
    if not table:
        raise UserError(f"There is nothing to report: no training of {todo.suite.path} is done.")
    return table


def write_report(
    todo: Plan, configs: Mapping[str, CfgNode], output: Path, command: str, failed: Sequence[str]
) -> str:
    """Write report.md, results.json and the plots of what is finished; nothing if nothing is.

    Args:
        todo: the trainings. configs: row's name to its config. output: folder to write to.
        command: that the report shows. failed: names of runs.

    Returns:
        The table of the report, or "".
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
    first = {
        titles[name]: runs[seed]
        for name, runs in todo.methods.items()
        if runs[seed].results is not None
    }
    plots = {}
    if any(row["values"] for row in (summary["teachers"] | summary["methods"]).values()):
        picture = re.sub(r"\W+", "-", metric.lower()) + ".png"  # ap.png, mask-ap.png, top-1.png
        plot_metric(summary, output / picture)
        plots[picture] = (
            f"{metric}: a dot a seed, a bar for their mean; dashed lines are the means of the "
            "methods that gains are measured against."
        )
    if plot_curves(finished, summary["metric"], output / "curves.png"):
        plots["curves.png"] = f"{metric} over the steps, mean over the seeds."
    if plot_prior(first, output / "prior.png"):
        plots["prior.png"] = (
            f"Prior ratio and CKA of each level, and the losses, with seed {seed}; the total loss "
            "includes the others."
        )
    write_whole(output / REPORT, report_text(summary, plots))
    return method_table(summary)


def _draw(configs: Iterable[CfgNode]) -> None:
    # here, where the progress bar can be seen, and not by several trainings at once
    names = {name for cfg in configs for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    for name in sorted(names):
        if MetadataCatalog.get(name).get("drawn_on_demand", False):
            DatasetCatalog.get(name)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trainings end as well
    given = sys.argv[1:] if argv is None else argv
    # as it is to be called to train what is reported
    command = ["python", "tools/compare.py", *(x for x in given if x != "--report-only")]
    with exit_on_user_error():
        suite = read_suite(args.suite)
        output = args.output or Path("output") / args.suite.stem
        todo = plan(suite, args.runs or output / "runs", args.seeds, args.only)
        slots = None if args.report_only else make_slots(args.workers, args.threads, args.gpus)
        try:
            table = compare(todo, output, slots, shlex.join(command), _say)
        except KeyboardInterrupt:
            print("Interrupted: call again to go on from there.", file=sys.stderr)
            sys.exit(130)
    print(f"{table}\n\nThe report is in {output / REPORT}.")


def _say(line: str) -> None:
    print(line, flush=True)  # one may be watching a file

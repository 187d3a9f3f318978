"""The comparison command: trains teachers and every method with every seed, and reports."""

import argparse
import contextlib
import difflib
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.config import PLAIN, load_config, method_arguments
from dpk_det.distill import Level, build_distiller
from dpk_det.errors import UserError
from dpk_det.teacher import load_teacher_config

from .launch import exit_on_user_error
from .plan import Plan, overrides, plan
from .plots import plot_curves, plot_metric, plot_prior
from .report import method_table, metric_name, report_text
from .runs import Run, check_config, flatten, make_slots, train_all
from .suite import Method, Teacher, read_suite
from .summary import summarise
from .train import parse_args as parse_train_args
from .train import setup
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
        except (UserError, OSError) as e:  # no reason to end trainings; told again at the end
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
    output.mkdir(parents=True, exist_ok=True)
    (output / RESULTS).write_text(json.dumps(summary, indent=2) + "\n")
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
    (output / REPORT).write_text(report_text(summary, plots))
    return method_table(summary)


def load_configs(todo: Plan, trains: bool) -> dict[str, CfgNode]:
    """The config of each row, of its first seed, since seeds differ in the seed alone.

    Args:
        todo: the trainings. trains: whether they are to be trained here: their datasets must be
            here, and a GPU if they are to use one.

    Raises:
        UserError: for the first mistake in them, naming the row.
    """
    suite = todo.suite
    for teacher in suite.teachers.values():
        if teacher.weights is not None:  # no row, since it is not trained
            where = f"teachers.{teacher.name} of {suite.path}"
            with _telling(f"{where} cannot be built"):
                load_teacher_config(teacher.config, overrides(teacher.opts))
            is_path = teacher.weights and "://" not in teacher.weights
            if trains and is_path and not Path(teacher.weights).expanduser().is_file():
                raise UserError(
                    f"The weights {teacher.weights} of {where} are no file below {Path.cwd()}: "
                    "correct the path."
                )
    configs = {}
    for name, runs in todo.rows.items():
        is_teacher = name in todo.teachers
        entry = (suite.teachers if is_teacher else suite.methods)[name]
        where = f"{'teachers' if is_teacher else 'methods'}.{name} of {suite.path}"
        if not Path(entry.config).expanduser().is_file():
            raise UserError(
                f"The config {entry.config!r} of {where} is no file below {Path.cwd()}: correct it."
            )
        with _telling(f"{where} cannot be trained"):
            known = flatten(load_config(entry.config))
            for key in entry.opts:
                _check_key(known, key)
            run = next(iter(runs.values()))
            configs[name] = (
                setup(parse_train_args(run.arguments))
                if trains
                else load_config(run.config, run.opts)
            )
            _check_method(configs[name], entry)
    return configs


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except UserError as e:
        raise UserError(f"{what}: {e}") from e


def _check_method(cfg: CfgNode, entry: Teacher | Method) -> None:
    if cfg.MODEL.META_ARCHITECTURE in PLAIN:
        # built here, on a level that is made up, so that a mistake is found before the teacher's
        # training and not after it
        arguments = method_arguments(cfg)
        for values in arguments.values():
            values.pop("level_weights", None)
        build_distiller(arguments, [Level("p3", "p3", 8, 8, 8)])
    elif "DISTILL.METHODS" in entry.opts or (
        getattr(entry, "teacher", None) and not cfg.DISTILL.INHERIT
    ):
        raise UserError(
            f"{cfg.MODEL.META_ARCHITECTURE} learns from no teacher: choose a config with an "
            f"architecture that distils ({', '.join(PLAIN)})."
        )


def _check_key(known: Iterable[str], key: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key.upper(), list(known), 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else "take it out."
        raise UserError(f"its opts (or common) have the unknown config key {key}: {hint}")


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

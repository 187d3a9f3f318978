"""The comparison command: trains teachers and every method with every seed, and reports."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dpk_det.comparison.cluster import CLUSTERS, DEFAULTS, Cluster
from dpk_det.comparison.equal_time import with_controls
from dpk_det.comparison.evidence import Evidence
from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import Slots, Workers, make_slots, threads_of
from dpk_det.comparison.made_with import check_config
from dpk_det.comparison.page import PAGE
from dpk_det.comparison.plan import Plan, plan
from dpk_det.comparison.report_files import REPORT, write_report
from dpk_det.comparison.run import Run
from dpk_det.comparison.runs import train_all
from dpk_det.comparison.suite import read_suite, suite_name
from dpk_det.comparison.suite_configs import check_evaluations, load_configs
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.signals import Stopped
from dpk_det.errors import UserError, reason


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
        "--evidence",
        type=Path,
        metavar="FOLDER",
        help="keep each training's config and figures there too, without weights, and train "
        "nothing of which this folder has them",
    )
    add_machine_arguments(parser)
    parser.add_argument(
        "--cluster",
        choices=CLUSTERS,
        help="let each training be a job of Slurm",
    )
    parser.add_argument(
        "--job",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="of each job of --cluster, by the names of submitit's AutoExecutor, such as "
        "slurm_partition=gpu timeout_min=600 cpus_per_task=8 (default: "
        + " ".join(f"{name}={value}" for name, value in DEFAULTS.items())
        + ")",
    )
    parser.add_argument(
        "--report-only", action="store_true", help="train nothing, report what is finished"
    )
    return parser.parse_args(argv)


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`dpk_det.comparison.jobs.make_slots`."""
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


def compare(
    todo: Plan,
    output: Path,
    workers: Workers | None,
    command: str,
    say: Callable[[str], None] = print,
    interrupts: Interrupts | None = None,
    evidence: Evidence | None = None,
) -> str:
    """Train the unfinished runs; write the report after each training that ends.

    Args:
        todo: the trainings.
        output: folder of the report, its plots and results.json.
        workers: workers that train. None: train nothing.
        command: command line that the report shows.
        say: gets the lines of progress.
        interrupts: tells when to stop.
        evidence: keeps finished runs as well.

    Returns:
        The table of the report.

    Raises:
        UserError: for a mistake in a config, before any training; at the end, when trainings
            failed, or there is no report.
        Stopped: when a signal came; finished runs are reported first.
    """
    trains = workers is not None
    configs = load_configs(todo, trains)
    check_evaluations(todo, configs, trains, say)
    failed: list[str] = []

    def report(say: Callable[[str], None] = lambda line: None) -> str:
        if evidence:
            evidence.keep(todo.runs, output, say)
        return write_report(todo, configs, output, command, failed)

    def update(run: Run | None = None, done: bool = True) -> None:
        if not done:
            failed.append(run.name)
        try:
            report()
        except UserError as e:  # a full disk must not end trainings; the last report repeats this
            say(f"The report could not be written ({e})")

    if trains:
        _draw(configs.values())
        try:
            train_all(todo.runs, workers, say, update, interrupts)
        except Stopped:
            update()
            raise
    else:
        for run in todo.runs:
            check_config(run, any_machine=True, say=say)
    table = report(say)
    if not table:
        raise UserError(f"There is nothing to report: no training of {todo.suite.path} is done.")
    return table


def _draw(configs: Iterable[CfgNode]) -> None:
    # Draw here, so that the progress bar is visible and not several trainings draw at once.
    names = {name for cfg in configs for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    for name in sorted(names):
        if MetadataCatalog.get(name).get("drawn_on_demand", False):
            DatasetCatalog.get(name)


def _workers(args: argparse.Namespace, output: Path) -> tuple[Workers, Mapping[str, str]]:
    """Return the workers, and the variables that they add to a training's environment."""
    if not args.cluster:
        if args.job:
            raise UserError("--job is of --cluster, which is not given: add it.")
        slots = make_slots(args.workers, args.threads, args.gpus)
        return Slots(slots), slots[0]
    if args.gpus:
        raise UserError("--gpus is of this machine: write --job gpus_per_node=1 for a cluster.")
    if args.workers:
        raise UserError("--workers is of this machine: the cluster's queue decides, leave it out.")
    wrong = [x for x in args.job if not re.fullmatch(r"\w+=.+", x)]
    if wrong:
        raise UserError(f"--job has {wrong[0]!r}: write NAME=VALUE.")
    pairs = [x.partition("=") for x in args.job]
    try:
        options = {name: yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as e:
        raise UserError(f"--job has a value that is no YAML ({reason(e)}): quote it.") from e
    environment = threads_of(args.threads)
    return Cluster(output / "jobs", options, environment), environment


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C end the trainings, which save first; jobs of a cluster go
    on. Finished runs are then reported, and the exit status is ``errors.STOPPED``. A second Ctrl-C
    ends everything at once.
    """
    args = parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    # The report shows the command that trains its runs.
    called = "dpk-det compare" if sys.argv[0].startswith("dpk-det") else "python tools/compare.py"
    command = [*called.split(), *(x for x in given if x != "--report-only")]
    with exit_on_user_error(), Interrupts().taken() as interrupts:
        suite = read_suite(args.suite)
        output = args.output or Path("output") / suite_name(args.suite)
        workers = environment = None
        if not args.report_only:
            workers, environment = _workers(args, output)
        say = partial(print, flush=True)  # a reader may follow the output in a file
        evidence = Evidence(args.evidence) if args.evidence else None
        if evidence:
            evidence.restore_step_times(output)
        suite = with_controls(suite, output, environment, say)
        todo = plan(suite, args.runs or output / "runs", args.seeds, args.only)
        if evidence:
            evidence.restore(todo.runs)
        table = compare(todo, output, workers, shlex.join(command), say, interrupts, evidence)
    print(f"{table}\n\nThe report is {output / PAGE}, and {output / REPORT} without the photos.")

"""The tuning command: finds the config values with which each method of a suite does best."""

import argparse
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from detectron2.config import CfgNode

from dpk_det.comparison.command import add_machine_arguments
from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import Slots, make_slots
from dpk_det.comparison.plan import plan
from dpk_det.comparison.runs import train_all
from dpk_det.comparison.suite import Suite, read_suite, suite_name
from dpk_det.comparison.suite_configs import load_configs
from dpk_det.comparison.tuning.trials import Trainings
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.signals import INTERRUPTED
from dpk_det.errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``sys.argv`` when none is given."""
    parser = argparse.ArgumentParser(
        description="Find the values with which each method of a suite does best, as its node "
        "`tune` says. Called again, it goes on; two that are called at once share the work.",
        allow_abbrev=False,
    )
    parser.add_argument("suite", type=Path, help="YAML file with a node `tune`")
    parser.add_argument(
        "--output", type=Path, help="where all goes (default: output/NAME OF THE SUITE)"
    )
    add_machine_arguments(parser)
    return parser.parse_args(argv)


def tune(
    suite: Suite,
    output: Path,
    slots: Sequence[Mapping[str, str]],
    say: Callable[[str], None] = print,
    interrupts: Interrupts | None = None,
) -> str:
    """Make the missing trials of a suite, and write their results.

    Teachers, and the model that students start with, are trained first.

    Args:
        suite: a suite with a node ``tune``.
        output: folder for all files.
        slots: from :func:`~dpk_det.comparison.jobs.make_slots`; as many trials run at a time.
        say: gets the lines of progress.
        interrupts: tells when to stop.

    Returns:
        The tables of the trials.

    Raises:
        UserError: for a mistake in the suite, before any training; when a training failed without
            diverging; when no trial of a method has the metric.
        Stopped: when a signal came.
    """
    if suite.tune is None:
        raise UserError(f"{suite.path} has no node tune: docs/comparing.md says what to write.")
    if not importlib.util.find_spec("optuna"):
        raise UserError("Tuning takes the package optuna: pip install optuna.")
    from dpk_det.comparison.tuning import files

    interrupts, seed = interrupts or Interrupts(), suite.tune.seed
    configs = _check_all(suite, output)
    todo = plan(suite, output / "runs", [seed], only=suite.tune.keys)
    teachers = [*todo.teachers.values()]
    trainings = Trainings(output / "trials", suite.metric, teachers, slots, say, interrupts)
    steps = {name: configs[name].SOLVER.MAX_ITER for name in suite.tune.keys}
    with files.usable(output):
        searches = {name: files.open_search(suite, name, output, steps[name]) for name in steps}
        train_all(teachers, Slots(slots), say, interrupts=interrupts)
        try:
            for name, search in searches.items():
                search.allowed = partial(_check, suite, output, name)
                search.check, search.say = trainings.check, say
                student = todo.methods[name][seed]
                with interrupts.noted():
                    search.run(partial(trainings.train, student, steps[name]), len(slots))
                if search.best is None:
                    raise UserError(
                        f"No trial of {name} came to an end with {suite.metric}: read the logs in "
                        f"{trainings.folder} and give tune.keys.{name} of {suite.path} other "
                        "values."
                    )
        finally:
            tables = files.write_trials(searches, suite.metric, output)
        files.write_tuned(suite, searches, output)
    return tables


def _check_all(suite: Suite, output: Path) -> dict[str, CfgNode]:
    """Check the ends of all ranges and all choices; return the configs of the methods."""
    keys = suite.tune.keys
    most = max(len(space.values) for spaces in keys.values() for space in spaces.values())
    for i in reversed(range(most)):
        params = {
            name: {
                key: space.values[min(i, len(space.values) - 1)] for key, space in spaces.items()
            }
            for name, spaces in keys.items()
        }
        configs = _load(suite, output, params, trains=i == 0)
    return configs


def _check(suite: Suite, output: Path, name: str, params: Mapping[str, Any]) -> None:
    _load(suite, output, {name: params}, trains=False)


def _load(
    suite: Suite, output: Path, params: Mapping[str, Mapping[str, Any]], trains: bool
) -> dict[str, CfgNode]:
    methods = dict(suite.methods)
    for name, values in params.items():
        opts = {**methods[name].opts, **values}
        methods[name] = msgspec.structs.replace(methods[name], opts=opts)
    tried = msgspec.structs.replace(suite, methods=methods)
    return load_configs(plan(tried, output / "runs", [suite.tune.seed], only=params), trains)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C end the trainings, which save first. The exit status is
    then ``errors.STOPPED``. A second Ctrl-C ends this process at once.
    """
    args = parse_args(argv)
    with exit_on_user_error(), Interrupts().taken() as interrupts:
        suite = read_suite(args.suite)
        output = args.output or Path("output") / suite_name(args.suite)
        slots = make_slots(args.workers, args.threads, args.gpus)
        try:
            tables = tune(suite, output, slots, _say, interrupts)
        except KeyboardInterrupt:  # sys.exit() would wait for threads that wait for trainings
            os._exit(INTERRUPTED)
    print(
        f"{tables}\nThe suite with the best values: python tools/compare.py {output}/tuned.yaml "
        f"--runs {output}/runs"
    )


def _say(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # one write, because several threads print

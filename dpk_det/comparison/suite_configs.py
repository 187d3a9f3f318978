"""Loads the configs of a suite's trainings, and checks them before any training begins."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from detectron2.config import CfgNode

from dpk_det.architectures import build, distilling_names, distils, plain_architecture
from dpk_det.checkpoint.loading import load_backbone_weights
from dpk_det.comparison.opts import overrides
from dpk_det.comparison.plan import Plan
from dpk_det.comparison.run import Run
from dpk_det.comparison.suite import Method, Teacher
from dpk_det.config.loading import load_config
from dpk_det.config.methods import method_arguments
from dpk_det.config.shipped import find_config
from dpk_det.config.values import flatten
from dpk_det.data import register_image_datasets, register_json_datasets
from dpk_det.distill import Level, build_distiller
from dpk_det.engine.metric_names import check_metric
from dpk_det.engine.teacher_accuracy import describe_teacher, evaluation_config
from dpk_det.engine.train import parse_args, setup
from dpk_det.errors import UserError, nearest
from dpk_det.pairing.teacher import load_teacher, load_teacher_config


def load_configs(todo: Plan, trains: bool) -> dict[str, CfgNode]:
    """Load the config of each row with its first seed; the other seeds differ only in the seed.

    Args:
        todo: the trainings.
        trains: whether to train them here: then the datasets must be here, and a GPU if a config
            asks for one.

    Raises:
        UserError: for the first mistake in a config, naming the row; when the evaluation of a
            student will not give the suite's metric.
    """
    suite = todo.suite
    for teacher in suite.teachers.values():
        if teacher.weights is not None:
            _check_given(todo, teacher, trains)
    configs = {}
    for name, runs in todo.rows.items():
        if name in todo.evaluations:  # it uses a student's config
            continue
        is_teacher = name in todo.teachers
        entry = (suite.teachers if is_teacher else suite.methods)[name]
        where = f"{'teachers' if is_teacher else 'methods'}.{name} of {suite.path}"
        if not os.path.isfile(find_config(entry.config)):
            raise UserError(
                f"The config {entry.config!r} of {where} is no file below {Path.cwd()}: correct it."
            )
        with _telling(f"{where} cannot be trained"):
            known = dict(flatten(load_config(entry.config, overrides({"IMPORTS": suite.imports}))))
            for key in entry.opts:
                _check_key(known, key)
            run = next(iter(runs.values()))
            configs[name] = setup(parse_args(run.arguments)) if trains else load_as_is(run)
            _check_method(configs[name], entry)
        if trains and not is_teacher:  # a teacher that lacks a figure leaves its cell blank
            for metric in filter(None, (suite.metric, suite.secondary)):
                check_metric(configs[name], metric, where)
    if trains:
        _check_start(todo, configs)
    return configs


def check_evaluations(
    todo: Plan, configs: Mapping[str, CfgNode], trains: bool, say: Callable[[str], None]
) -> None:
    """Check which evaluations of given teachers are possible, and which must be repeated.

    Evaluations of teachers with other classes than the datasets are removed from the plan.

    Args:
        todo: the plan, changed in place.
        configs: from :func:`load_configs`.
        trains: as in :func:`load_configs`.
        say: gets a line for each evaluation that is removed or outdated.

    Raises:
        UserError: when an evaluation is outdated and ``trains`` is false.
    """
    for name, run in [*todo.evaluations.items()]:
        cfg = configs[todo.learner(name)]
        now = describe_teacher(cfg, any_machine=not trains)
        before = (run.results or {}).get("teacher") or {}
        same = all(before.get(key) == value for key, value in now.items())
        if not trains:
            if before and not same:
                raise UserError(
                    f"{run.folder / run.results_file} is of another teacher than {name} of "
                    f"{todo.suite.path} is now: remove it."
                )
            continue
        if before and not same:
            (run.folder / run.results_file).unlink()
            say(f"{name}: its weights, config or datasets have changed; it is evaluated anew")
        try:
            evaluation_config(cfg)
        except UserError as e:
            del todo.evaluations[name]
            say(f"{name}: not evaluated. {e}")


def load_as_is(run: Run) -> CfgNode:
    """Load the config of a run, and register its datasets without looking for their files.

    Raises:
        UserError: for a mistake in the config.
    """
    cfg = load_config(run.config, run.opts)
    register_json_datasets(cfg)
    register_image_datasets(cfg)
    return cfg


def _check_given(todo: Plan, teacher: Teacher, trains: bool) -> None:
    where = f"teachers.{teacher.name} of {todo.suite.path}"
    is_path = teacher.weights and "://" not in teacher.weights
    if trains and is_path and not os.path.isfile(os.path.expanduser(teacher.weights)):
        raise UserError(
            f"The weights {teacher.weights} of {where} are no file below {Path.cwd()}: "
            "correct the path."
        )
    with _telling(f"{where} cannot be built"):
        opts = overrides(teacher.opts)
        if trains and todo.learner(teacher.name):
            load_teacher(teacher.config, teacher.weights, opts)
        else:
            load_teacher_config(teacher.config, opts)


def _check_start(todo: Plan, configs: Mapping[str, CfgNode]) -> None:
    start = todo.suite.teachers.get(todo.suite.start)
    if start is None or start.weights is None:
        return
    for name in todo.methods:
        with _telling(f"start of {todo.suite.path} is no start for methods.{name}"):
            load_backbone_weights(build(plain_architecture(configs[name])), start.weights)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except UserError as e:
        raise UserError(f"{what}: {e}") from e


def _check_method(cfg: CfgNode, entry: Teacher | Method) -> None:
    if distils(cfg):
        # Build the distiller here on an invented level, so that a mistake shows before the
        # teacher's training and not after it.
        arguments = method_arguments(cfg)
        for values in arguments.values():
            for key in ("levels", "level_weights"):
                values.pop(key, None)
        build_distiller(arguments, [Level("p3", "p3", 8, 8, 8)])
    elif "DISTILL.METHODS" in entry.opts or (
        getattr(entry, "teacher", None) and not cfg.DISTILL.INHERIT
    ):
        raise UserError(
            f"{cfg.MODEL.META_ARCHITECTURE} learns from no teacher: choose a config with an "
            f"architecture that distils ({', '.join(distilling_names())})."
        )


def _check_key(known: Iterable[str], key: str) -> None:
    if key not in known:
        near = nearest(key, known, 0.4)
        hint = f"did you mean {near}?" if near else "take it out."
        raise UserError(f"its opts (or common) have the unknown config key {key}: {hint}")

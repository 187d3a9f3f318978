"""The configs of a suite's trainings: loaded, and checked before any of them begins."""

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from detectron2.config import CfgNode

from dpk_det.config import PLAIN, load_config, method_arguments
from dpk_det.distill import Level, build_distiller
from dpk_det.errors import UserError
from dpk_det.teacher import load_teacher_config

from .metric_names import check_metric
from .plan import Plan, overrides
from .runs import flatten
from .suite import Method, Teacher
from .train import parse_args, setup


def load_configs(todo: Plan, trains: bool) -> dict[str, CfgNode]:
    """The config of each row, of its first seed, since seeds differ in the seed alone.

    Args:
        todo: the trainings. trains: whether they are to be trained here: their datasets must be
            here, and a GPU if they are to use one.

    Raises:
        UserError: for the first mistake in them, naming the row; when the evaluation of a student
            will not give the suite's metric.
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
        if not os.path.isfile(os.path.expanduser(entry.config)):
            raise UserError(
                f"The config {entry.config!r} of {where} is no file below {Path.cwd()}: correct it."
            )
        with _telling(f"{where} cannot be trained"):
            known = flatten(load_config(entry.config))
            for key in entry.opts:
                _check_key(known, key)
            run = next(iter(runs.values()))
            configs[name] = (
                setup(parse_args(run.arguments)) if trains else load_config(run.config, run.opts)
            )
            _check_method(configs[name], entry)
        if trains and not is_teacher:  # a teacher that lacks a figure leaves its cell blank
            for metric in filter(None, (suite.metric, suite.secondary)):
                check_metric(configs[name], metric, where)
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

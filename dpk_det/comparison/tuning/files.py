"""The files of a tuning: its studies, the tables of its trials, and the tuned suite.

This module is imported only for tuning, because it needs the package optuna.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from tabulate import tabulate

from dpk_det.comparison.suite import Suite
from dpk_det.comparison.tuning.search import NO_VALUE, Search, locked, show, startup
from dpk_det.comparison.tuning.trials import evaluation_period
from dpk_det.config.strict_yaml import read_yaml
from dpk_det.errors import UserError, reason
from dpk_det.files import no_room_ends, write_whole

_STUDIES, _TABLES = "trials.db", "trials.md"
_MADE_FOR = "made_for"  # attribute of a study: settings that must not change


@contextlib.contextmanager
def usable(output: Path) -> Iterator[None]:
    """Raise a UserError if the block cannot read or write these files.

    Raises:
        UserError: for example when the disk is full, or the file of the studies is damaged.
    """
    try:
        with no_room_ends(output):
            yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as e:
        raise UserError(
            f"{output / _STUDIES} cannot be used ({reason(getattr(e, 'orig', e))}): make room on "
            "the disk, or remove the file; trainings that are done are kept."
        ) from e


def open_search(suite: Suite, name: str, output: Path, steps: int) -> Search:
    """Open the search of a method, or begin it if there is none.

    Args:
        suite: a suite with a node ``tune``.
        name: name of the method.
        output: folder of the tuning.
        steps: steps of a training. Half of them are made before a trial may be ended early.

    Raises:
        UserError: when the search was begun with other settings than the suite has now.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    node, method, path = suite.tune, suite.methods[name], output / _STUDIES
    parts = (node.keys[name], node.seed, suite.metric, method.config, method.opts)
    made_for = json.dumps(msgspec.to_builtins(parts))
    with _alone(output):
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}
            ),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                startup(node.trials), n_warmup_steps=2 * evaluation_period(steps)
            ),
        )
        if study.user_attrs.get(_MADE_FOR, made_for) != made_for:
            raise UserError(
                f"The trials of {name} in {output} were made for other keys, ranges, seed, metric, "
                f"config or opts than {suite.path} has now: give another --output, or remove "
                f"{path}."
            )
        study.set_user_attr(_MADE_FOR, made_for)
    return Search(study, _locks(output) / name, node.keys[name], node.trials, node.seed)


def write_trials(searches: Mapping[str, Search], metric: str, output: Path) -> str:
    """Write the trials so far: ``trials.md`` and ``trials.json``.

    Args:
        searches: method to its search.
        metric: metric of the suite.
        output: folder of the tuning.

    Returns:
        The content of ``trials.md``.
    """
    content = {name: _summary(search) for name, search in searches.items()}
    parts = [f"## {name}\n\n{_table(search, metric)}" for name, search in searches.items()]
    text = "\n\n".join(["# Trials", *parts]) + "\n"
    with _alone(output):
        write_whole(output / "trials.json", json.dumps(content, indent=2) + "\n")
        write_whole(output / _TABLES, text)
    return text


def write_tuned(suite: Suite, searches: Mapping[str, Search], output: Path) -> None:
    """Write ``tuned.yaml``: the suite with the best values of each method, without ``tune``.

    Args:
        suite: the suite; its file is read again.
        searches: method to its search, each with a best trial.
        output: folder of the tuning.
    """
    content = read_yaml(suite.path, "suite")
    content = {"title": suite.title, **content}
    del content["tune"]
    lines = [
        f"# Made by tools/tune.py from {suite.path}. The trials had seed {suite.tune.seed}, which "
        f"is not among the seeds here; they are in {_TABLES} beside this file."
    ]
    for name, search in searches.items():
        entry = content["methods"][name]
        entry["opts"] = {**(entry.get("opts") or {}), **search.best.params}
        lines += [f"# {line}" for line in (f"{name}:", *_findings(search, suite.metric))]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    with _alone(output):
        write_whole(output / "tuned.yaml", "\n".join([*lines, text]))


def _locks(output: Path) -> Path:
    return output / "trials" / "locks"


def _alone(output: Path) -> contextlib.AbstractContextManager[None]:
    return locked(_locks(output) / "files.lock")


def _summary(search: Search) -> dict[str, Any]:
    return {
        "ranges": msgspec.to_builtins(search.ranges),
        "widened": msgspec.to_builtins(search.rounds),
        "at_edge": search.edges,
        "best": search.best and search.best.params,
        "trials": [
            {
                "params": trial.params,
                "value": trial.value if trial.state == TrialState.COMPLETE else None,
                "state": trial.state.name.lower(),
                "on_the_way": trial.intermediate_values,  # step to value
                "seconds": _seconds(trial),
            }
            for trial in search.made
        ],
    }


def _table(search: Search, metric: str) -> str:
    rows = []
    for number, trial in enumerate(search.made, 1):
        seconds = _seconds(trial)
        row = [number, *(show(trial.params.get(key, "")) for key in search.space)]
        row += [_end(trial), "" if seconds is None else round(seconds)]
        rows.append(
            ["**best**" if search.best and trial.number == search.best.number else "", *row]
        )
    headers = ["", "trial", *search.space, metric, "seconds"]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return "\n".join([table, "", *(f"- {line}" for line in _findings(search, metric))])


def _end(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"{trial.value:.2f}"
    if trial.state != TrialState.PRUNED:
        return "not finished"
    if NO_VALUE in trial.user_attrs:
        return "none"
    return f"pruned at step {trial.last_step}, {trial.intermediate_values[trial.last_step]:.2f}"


def _seconds(trial: FrozenTrial) -> float | None:
    return trial.duration and trial.duration.total_seconds()


def _findings(search: Search, metric: str) -> list[str]:
    if search.best is None:
        return []
    values = ", ".join(f"{key} {show(value)}" for key, value in search.best.params.items())
    lines = [f"Best of {len(search.made)} trials: {values}, {metric} {search.best.value:.2f}."]
    for wider in search.rounds:
        for key, values in wider.items():
            lines.append(f"{key}: the best was at the edge, so its range became {show(values)}.")
    for key, side in search.edges.items():
        lines.append(
            f"{key}: the best is near the {side} end of its range ({show(search.ranges[key])}) "
            "still, so that a better one may lie beyond it."
        )
    return lines

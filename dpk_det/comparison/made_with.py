"""Checks that the files in a run's folder are those that the run would make now."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from dpk_det.architectures import distils
from dpk_det.comparison.run import Run
from dpk_det.config.key_table import GONE
from dpk_det.config.loading import load_config
from dpk_det.config.methods import comparable
from dpk_det.engine.train import parse_args, setup
from dpk_det.errors import UserError

# keys that hold a path, which may be spelled in several ways
_PATHS = ("DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS", "MODEL.BACKBONE_WEIGHTS")
_OPTS = "DISTILL.TEACHER.OPTS"
_LAST_KEY = "VIS_PERIOD"  # the last key of a complete config.yaml, whose keys are sorted


def check_config(
    run: Run, any_machine: bool = False, say: Callable[[str], None] = lambda line: None
) -> None:
    """Check that a run's folder was made with the config that the run has now.

    A key that is newer than the folder must have its default now. A key that no longer exists must
    have the value in ``GONE``. The check ignores the spelling of paths, a move of the folder with
    all runs beside it, ``IMPORTS`` itself (but not the keys that imports add), ``TRACKER``, and the
    keys of distillation methods that the run does not use.

    Args:
        run: finished, begun or not yet begun.
        any_machine: whether to ignore device and mixed precision too, and to need no datasets.
        say: gets a line if config.yaml is damaged but nothing was saved yet.

    Raises:
        UserError: when the folder was made with another config, naming a key that differs; when
            config.yaml is damaged although a checkpoint or results exist.
    """
    made_with = run.folder / "config.yaml"
    if not run.trains or not made_with.is_file():
        return
    content = _read_config(made_with)
    if content is None:
        if run.results is not None or any(run.folder.glob("model_*.pth")):
            raise UserError(
                f"{made_with} is damaged, so that nobody can tell whether what lies beside it was "
                f"made with the configuration that {run.name} has now: remove the folder to train "
                "anew, or that file if you know that it was."
            )
        say(f"{run.name}: {made_with} is damaged; nothing was saved yet, so it starts anew")
        return
    ignored = ["OUTPUT_DIR", "IMPORTS"]
    if any_machine:
        cfg = load_config(run.config, run.opts)
        ignored += ["MODEL.DEVICE", "SOLVER.AMP.ENABLED"]
    else:
        cfg = setup(parse_args(run.arguments))
    default = load_config("", ["IMPORTS", str(cfg.IMPORTS)])  # imports may add keys
    had, has, default = map(comparable, (content, _content(cfg), _content(default)))
    for each in (had, has):
        each |= {key: os.path.abspath(each.get(key) or "") for key in _PATHS}
        each[_OPTS] = _without_imports(each.get(_OPTS) or [])
    folder = os.path.abspath(had.get("OUTPUT_DIR") or run.folder)
    for key in _PATHS:
        # The file is of another run that moved together with this one.
        if os.path.relpath(had[key], folder) == os.path.relpath(has[key], run.folder):
            had[key] = has[key]
    nothing = object()
    for key in {**had, **has}:
        before = had.get(key, default.get(key, nothing))
        now = has.get(key, GONE.get(key, nothing))
        if key.startswith("TRACKER."):  # where curves are logged
            continue
        if key not in ignored and _matters(key, cfg) and before != now:
            raise UserError(
                f"{run.folder} was made with another configuration than {run.name} has now ({key} "
                "differs): remove or rename that folder, or give another one."
            )


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    whole = isinstance(content, dict) and _LAST_KEY in content
    return content if whole and isinstance(content.get("DISTILL", {}), dict) else None


def _without_imports(opts: Sequence[Any]) -> list[Any]:
    pairs = zip(opts[::2], opts[1::2], strict=False)  # a damaged file may have an odd number
    return [text for pair in pairs if pair[0] != "IMPORTS" for text in pair]


def _matters(key: str, cfg: CfgNode) -> bool:
    top, _, rest = key.partition(".")
    node, _, argument = rest.partition(".")
    if top != "DISTILL" or not argument or node == "TEACHER":
        return True
    return distils(cfg) and node.lower() in cfg.DISTILL.METHODS


def _content(cfg: CfgNode) -> dict[str, Any]:
    return yaml.safe_load(cfg.dump())  # as read from a file, with lists for tuples


def check_age(run: Run, needed: Iterable[Run]) -> None:
    """Check that a run, finished or begun, is younger than the runs that it needs.

    A run that has results but no weights (see :mod:`.evidence`) is not checked, because the time of
    its files means nothing.

    Raises:
        UserError: when the run is older, or a run that it needs is not finished: it then used
            another teacher.
    """
    if run.results is not None and run.trains and not run.weights.is_file():
        return
    trace = run.folder / (run.results_file if run.results is not None else "config.yaml")
    if not trace.is_file():
        return
    made = trace.stat().st_mtime
    for before in needed:
        if before.results is None or made < (before.folder / before.results_file).stat().st_mtime:
            raise UserError(
                f"{run.folder} was made before the {before.name} it needs: remove or rename it."
            )

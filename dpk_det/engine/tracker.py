"""Send a training's curves to an experiment tracker: Weights & Biases, MLflow or trackio."""

import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from dpk_det.engine.best import NoMoreGain
from dpk_det.errors import UserError, find
from dpk_det.files import write_whole

RUN = "tracker.json"
"""File in ``OUTPUT_DIR`` with the run that a resumed training continues."""
_WINDOW = 20  # steps that Detectron2's writers smooth over

Values = Mapping[str, float]


class _Run(Protocol):
    id: str  # a resumed training finds the run by this id

    def log(self, values: Values, step: int) -> None: ...

    def finish(self, failed: bool) -> None: ...


class _Wandb:
    def __init__(self, cfg: CfgNode, name: str, id: str | None) -> None:
        self._run = import_module("wandb").init(
            project=cfg.TRACKER.PROJECT,
            name=name,
            dir=cfg.OUTPUT_DIR,
            config=yaml.safe_load(cfg.dump()),
            id=id,
            resume="allow" if id else None,
        )
        self.id = self._run.id
        # wandb's own step counter only rises, but a resumed training may repeat steps.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log(self, values: Values, step: int) -> None:
        self._run.log({**values, "iteration": step})

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, cfg: CfgNode, name: str, id: str | None) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.set_experiment(cfg.TRACKER.PROJECT)
        self.id = self._mlflow.start_run(run_id=id, run_name=name).info.run_id
        # The config is a text, because MLflow refuses changed parameters in a resumed training.
        self._mlflow.log_text(cfg.dump(), "config.yaml")

    def log(self, values: Values, step: int) -> None:
        # MLflow accepts only these characters, but a class name may have any.
        names = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
        self._mlflow.log_metrics(names, step=step)

    def finish(self, failed: bool) -> None:
        self._mlflow.end_run("FAILED" if failed else "FINISHED")


class _Trackio:
    def __init__(self, cfg: CfgNode, name: str, id: str | None) -> None:
        self._run = import_module("trackio").init(
            project=cfg.TRACKER.PROJECT,
            name=id or name,
            config=yaml.safe_load(cfg.dump()),
            resume="allow" if id else "never",
            embed=False,
        )
        self.id = self._run.name  # trackio resumes a run by its name

    def log(self, values: Values, step: int) -> None:
        # trackio reserves the name "time".
        names = {"step_time" if name == "time" else name: value for name, value in values.items()}
        self._run.log(names, step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[CfgNode, str, str | None], _Run]] = {
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}


class TrackerWriter(EventWriter):
    """Writes the figures of metrics.json to the tracker ``cfg.TRACKER.NAME`` as well.

    If the tracker fails during the training, one warning is logged and the training goes on.

    Args:
        cfg: a config with TRACKER.NAME. The run gets the name of OUTPUT_DIR.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._run: _Run | None = None
        self._last_write = -1

    def open(self, resume: bool) -> None:
        """Begin a run.

        Args:
            resume: whether to continue the run of an earlier training in OUTPUT_DIR.

        Raises:
            UserError: when the tracker cannot begin the run.
        """
        name, folder = self._cfg.TRACKER.NAME, Path(self._cfg.OUTPUT_DIR)
        known = _read(folder / RUN).get(name) if resume else None
        try:
            self._run = TRACKERS[name](self._cfg, folder.resolve().name, known)
        except Exception as e:
            raise UserError(
                f"{name} cannot begin a run ({_sentence(e)}): correct its settings, or set "
                "TRACKER.NAME to ''."
            ) from e
        write_whole(folder / RUN, json.dumps({name: self._run.id}))

    def write(self) -> None:
        """Send the new values of the storage, smoothed as in metrics.json."""
        new: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if step > self._last_write:
                new[step][name] = float(value)
        for step in sorted(new):
            self._try(lambda run, step=step: run.log(new[step], step))
        self._last_write = max([self._last_write, *new])

    def close(self) -> None:
        """End the run. An exception other than NoMoreGain marks it as failed."""
        error = sys.exc_info()[1]
        failed = error is not None and not isinstance(error, NoMoreGain)
        self._try(lambda run: run.finish(failed))
        self._run = None

    def _try(self, do: Callable[[_Run], None]) -> None:
        if self._run is None:
            return
        try:
            do(self._run)
        except Exception as e:
            self._run = None
            logging.getLogger("dpk_det").warning(
                "%s failed (%s): the training goes on without it; metrics.json has all figures.",
                self._cfg.TRACKER.NAME,
                _sentence(e),
            )


def check_tracker(cfg: CfgNode) -> None:
    """Check ``TRACKER`` of a config.

    Raises:
        UserError: when the tracker is unknown or not installed.
    """
    name = cfg.TRACKER.NAME
    if not name:
        return
    find(TRACKERS, name, "tracker (TRACKER.NAME)")
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder such as wandb's is no package
        raise UserError(f"TRACKER.NAME is {name}, which is not installed: pip install {name}")


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""One training of a comparison: how it is started, and what it has left in its folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from detectron2.evaluation.testing import flatten_results_dict

from dpk_det.engine.lock import training_lock
from dpk_det.engine.trainer import RESULTS
from dpk_det.errors import BusyError, UserError


@dataclass(frozen=True)
class Run:
    """One training, or the evaluation of a teacher that was trained elsewhere.

    Attributes:
        name: unique in its experiment. config: its file. folder: its OUTPUT_DIR.
        opts: overrides of the config, ``(KEY, VALUE, ...)``.
        after: names of the runs that must be done before.
        mode: argument of the training command. results_file: what it leaves at its end.
    """

    name: str
    config: str
    folder: Path
    opts: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    mode: str = "--resume"  # one that was interrupted goes on
    results_file: str = RESULTS

    @property
    def trains(self) -> bool:
        """Whether it is a training."""
        return self.mode == "--resume"

    @property
    def is_busy(self) -> bool:
        """Whether a process, of whomever, trains it now."""
        if not self.trains or not self.folder.is_dir():
            return False
        try:
            with training_lock(self.folder):
                return False
        except BusyError:
            return True

    @property
    def arguments(self) -> list[str]:
        """The training command's arguments."""
        opts = [*self.opts, "OUTPUT_DIR", str(self.folder)]
        return ["--config-file", self.config, self.mode, *opts]

    @property
    def results(self) -> dict[str, Any] | None:
        """What the finished run left in its results file; None before that.

        Raises:
            UserError: when the file is damaged.
        """
        path = self.folder / self.results_file
        try:
            content = msgspec.json.decode(path.read_bytes())
            msgspec.convert(content, _Results)
            msgspec.convert(flatten_results_dict(content["results"]), dict[str, float | None])
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError) as e:
            raise UserError(
                f"{path} is damaged ({' '.join(str(e).split())}): remove it and call again, which "
                "writes it anew from the last checkpoint."
            ) from e
        return content

    @property
    def figures(self) -> dict[str, float | None]:
        """What the finished run was evaluated to: "bbox/AP" and the like; None: not measurable."""
        return flatten_results_dict(self.results["results"])

    @property
    def weights(self) -> Path:
        """What a finished training leaves to those that learn from it."""
        return self.folder / "model_final.pth"

    @property
    def log(self) -> Path:
        """Where the run's output goes."""
        return self.folder / "train.log"


class _Resumed(msgspec.Struct):
    """Where a training was resumed, whether as if it had not been interrupted, and if not, why."""

    step: int
    exact: bool
    why: str = ""


class _Machine(msgspec.Struct):
    platform: str
    cores: int | None
    threads: int
    gpu: str | None
    python: str
    torch: str
    detectron2: str


class _Teacher(msgspec.Struct):
    config: str
    datasets: list[str]
    weights: str
    modified: int | None


class _Results(msgspec.Struct):
    """What is read of a results file; older runs lack some of it."""

    results: dict[str, Any]
    parameters: int | None = None
    seconds_per_step: float | None = None
    peak_memory_mb: float | None = None
    machine: _Machine | None = None
    resumed: list[_Resumed] = []
    teacher: _Teacher | None = None  # of an evaluation: what was evaluated


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.json in order of iteration.

    Where a run was resumed, the later line of an iteration counts. What is no line of numbers is
    left out: one that is still being written, or damaged.
    """
    lines: dict[int, dict[str, float]] = {}
    for line in _metrics_lines(folder):
        lines.setdefault(line["iteration"], {}).update(line)
    return [lines[i] for i in sorted(lines)]


def _metrics_lines(folder: Path) -> Iterator[dict[str, float]]:
    try:
        texts = (folder / "metrics.json").read_bytes().splitlines()
    except OSError:
        return
    for text in texts:
        try:
            line = json.loads(text)  # which knows NaN
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("iteration")) is int:
            yield {key: value for key, value in line.items() if isinstance(value, int | float)}


def describe(run: Run) -> str:
    """The figures of a finished run: its APs, or else the first that it has."""
    figures = {k: v for k, v in run.figures.items() if v is not None}
    if not figures:
        return "nothing measured"
    shown = [key for key in figures if key.endswith("/AP")] or list(figures)[:1]
    return ", ".join(f"{key.replace('/', ' ')} {figures[key]:.1f}" for key in shown)


def progress(run: Run) -> str:
    """How far a run has come, by the line of its metrics that was written last."""
    lines = [*_metrics_lines(run.folder)]
    if not lines:
        return f"{run.name}: starting"
    # an evaluation writes its figures as of the step that would come next
    last = next((line for line in reversed(lines) if "total_loss" in line), lines[-1])
    eta = f", {last['eta_seconds'] / 60:.0f} min to go" if "eta_seconds" in last else ""
    loss = f", loss {last['total_loss']:.2f}" if "total_loss" in last else ""
    return f"{run.name}: step {last['iteration'] + 1}{loss}{eta}"

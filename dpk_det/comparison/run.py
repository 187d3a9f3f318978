"""One training of a comparison: how it is started, and what it has left in its folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from detectron2.evaluation.testing import flatten_results_dict

from dpk_det.engine.average import AVERAGE
from dpk_det.engine.finite import DIVERGED
from dpk_det.engine.lock import training_lock
from dpk_det.engine.resume.checkpoints import FINAL
from dpk_det.engine.trainer import RESULTS
from dpk_det.errors import BusyError, UserError


@dataclass(frozen=True)
class Run:
    """One training, or the evaluation of a teacher that was trained elsewhere.

    Attributes:
        name: unique name in its comparison.
        config: config file.
        folder: its OUTPUT_DIR.
        opts: overrides of the config, ``(KEY, VALUE, ...)``.
        after: names of the runs that must be done before.
        mode: argument of the training command.
        results_file: name of the file that the run writes at its end.
        averages: whether its figures are those of averaged weights (SOLVER.EMA_DECAY).
    """

    name: str
    config: str
    folder: Path
    opts: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    mode: str = "--resume"  # an interrupted training goes on
    results_file: str = RESULTS
    averages: bool = False

    @property
    def trains(self) -> bool:
        """Whether this run is a training, not an evaluation."""
        return self.mode == "--resume"

    @property
    def is_busy(self) -> bool:
        """Whether any process trains this run now."""
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
        """The content of a finished run's results file; None if the run is not finished.

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
        """Metrics of the finished run by name, such as "bbox/AP"; None if not measurable."""
        return flatten_results_dict(self.results["results"])

    @property
    def weights(self) -> Path:
        """The file of a finished training's weights, which other runs load: those evaluated."""
        return self.folder / f"{AVERAGE if self.averages else FINAL}.pth"

    @property
    def log(self) -> Path:
        """The file of the run's output."""
        return self.folder / "train.log"


class _Resumed(msgspec.Struct):
    """Where a training was resumed, whether it matches an uninterrupted one, and if not, why."""

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
    """The entries of a results file that are read; older runs lack some of them."""

    results: dict[str, Any]
    parameters: int | None = None
    seconds_per_step: float | None = None
    peak_memory_mb: float | None = None
    machine: _Machine | None = None
    resumed: list[_Resumed] = []
    teacher: _Teacher | None = None  # the evaluated teacher, in an evaluation


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics.json in order of iteration.

    Lines of one iteration are merged; after a resume the later values count. Incomplete and damaged
    lines, and values that are not numbers, are left out.
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
            line = json.loads(text)  # accepts NaN, unlike msgspec
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and type(line.get("iteration")) is int:
            yield {key: value for key, value in line.items() if isinstance(value, int | float)}


def diverged(run: Run, written: int = 0) -> bool:
    """Return whether a run's log says that it diverged, after its first ``written`` bytes."""
    log = run.log.read_bytes() if run.log.is_file() else b""
    return f"\nerror: {DIVERGED}".encode() in b"\n" + log[written:]


def describe(run: Run) -> str:
    """Describe the metrics of a finished run: its APs, or its first metric if it has no AP."""
    figures = {k: v for k, v in run.figures.items() if v is not None}
    if not figures:
        return "nothing measured"
    shown = [key for key in figures if key.endswith("/AP")] or list(figures)[:1]
    return ", ".join(f"{key.replace('/', ' ')} {figures[key]:.1f}" for key in shown)


def progress(run: Run) -> str:
    """Describe the progress of a run, by its last line of metrics."""
    lines = [*_metrics_lines(run.folder)]
    if not lines:
        return f"{run.name}: starting"
    # An evaluation writes its metrics under the next step, so prefer a line with a loss.
    last = next((line for line in reversed(lines) if "total_loss" in line), lines[-1])
    eta = f", {last['eta_seconds'] / 60:.0f} min to go" if "eta_seconds" in last else ""
    loss = f", loss {last['total_loss']:.2f}" if "total_loss" in last else ""
    return f"{run.name}: step {last['iteration'] + 1}{loss}{eta}"

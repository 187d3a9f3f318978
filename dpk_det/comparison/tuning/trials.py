"""The trials of a tuning: trainings, each with its own process and folder."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import Slots
from dpk_det.comparison.made_with import check_age
from dpk_det.comparison.opts import overrides
from dpk_det.comparison.run import Run, diverged, read_metrics
from dpk_det.comparison.runs import train_all
from dpk_det.engine.signals import Stopped
from dpk_det.errors import UserError


@dataclass
class Trainings:
    """The trainings of a tuning.

    Attributes:
        folder: parent of the trainings' folders.
        metric: metric of the suite.
        teachers: runs of trained teachers that the students need.
        slots: from :func:`~dpk_det.comparison.jobs.make_slots`; each running training takes one.
        say: gets the lines of progress.
        interrupts: tells when to stop.
    """

    folder: Path
    metric: str
    teachers: Sequence[Run]
    slots: Sequence[Mapping[str, str]]
    say: Callable[[str], None]
    interrupts: Interrupts

    def __post_init__(self) -> None:
        self._free = list(self.slots)

    def check(self) -> None:
        """Stop if a signal came.

        Raises:
            Stopped: when a signal came.
        """
        if self.interrupts.asked:
            raise Stopped(f"Stopped by {self.interrupts.name}; call again to go on from there.")

    def train(
        self,
        student: Run,
        steps: int,
        params: Mapping[str, Any],
        report: Callable[[int, float], None],
    ) -> float | None:
        """Train a student with some config values, or resume its training.

        Args:
            student: run without these values.
            steps: steps of the training.
            params: config key to value.
            report: gets step and metric of each evaluation except the last. Its exceptions end the
                training, which saves first; after the end, ``optuna.TrialPruned`` is ignored.

        Returns:
            The metric at the end; None if the training diverged or the metric was not measurable.

        Raises:
            UserError: when the training failed for another reason, naming its log.
            Stopped: when a signal came.
        """
        digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
        name = f"{student.name.rpartition('-seed')[0]}-{digest[:8]}"
        opts = overrides({**params, "TEST.EVAL_PERIOD": evaluation_period(steps)})
        run = replace(
            student, name=name, folder=self.folder / name, opts=(*student.opts, *opts), after=()
        )
        check_age(run, self.teachers)
        slot, written = self._free.pop(), _log_size(run)
        try:
            watch = _Watch(self.interrupts, run, self.metric, steps, report)
            train_all([run], Slots([slot]), self.say, interrupts=watch)
            # The last evaluations may be unreported; what is over need not be ended early.
            with contextlib.suppress(optuna.TrialPruned):
                watch.look()
        except UserError:
            if not diverged(run, written):
                raise
            self.say(f"{name}: it diverged, which counts as the worst")
            return None
        finally:
            self._free.append(slot)
        return run.figures.get(self.metric)


def evaluation_period(steps: int) -> int:
    """Return the steps between two evaluations of a training of ``steps`` steps."""
    return max(steps // 4, 1)


def _log_size(run: Run) -> int:
    return run.log.stat().st_size if run.log.is_file() else 0


class _Watch(Interrupts):
    """Interrupts for one training: each read of ``asked`` also reports its new metrics."""

    def __init__(
        self,
        everyone: Interrupts,
        run: Run,
        metric: str,
        steps: int,
        report: Callable[[int, float], None],
    ) -> None:
        self._everyone, self._folder, self._report = everyone, run.folder, report
        self._metric, self._steps = metric, steps
        self._size = self._last = 0

    @property
    def asked(self) -> int:
        """Number of the signal that was noted; 0 if none came."""
        self.look()  # may raise, which ends the training as a signal does
        return self._everyone.asked

    def look(self) -> None:
        """Report the metrics that are new."""
        path = self._folder / "metrics.json"
        size = path.stat().st_size if path.is_file() else 0
        if size == self._size:
            return
        self._size = size
        for line in read_metrics(self._folder):
            step = line["iteration"] + 1
            if self._last < step < self._steps and self._metric in line:
                self._last = step
                self._report(step, line[self._metric])

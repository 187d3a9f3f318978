"""How long a comparison will take, from the pace of the trainings that were watched."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from dpk_det.comparison.run import Run, last_metrics


@dataclass(frozen=True)
class _Watch:
    run: Run
    since: float
    first: int  # steps that were done before
    size: int  # of its metrics then

    def steps_done(self) -> int:
        """How far it is now."""
        # the lines of an earlier start do not count: they may be of steps that are done once more
        if _size(self.run.folder) == self.size:
            return self.first
        last = last_metrics(self.run.folder)
        return last["iteration"] + 1 if last else self.first


class Outlook:
    """Tells how long the runs of a comparison will take that are not done.

    A training takes its steps times its own pace so far, start and evaluations included; before it
    has one, the mean pace of its row; else that of all rows.

    Args:
        steps: name of each training to its SOLVER.MAX_ITER; others are taken to last no time.
        workers: that train at a time.
    """

    def __init__(self, steps: Mapping[str, int], workers: int) -> None:
        self._steps, self._workers = steps, workers
        self._watches: dict[str, _Watch] = {}
        self._paces: dict[str, tuple[str, float]] = {}  # name to row and seconds per step

    def watch(self, run: Run, now: float, starts: bool = True) -> None:
        """Begin to watch a run.

        Args:
            run: that starts from its last checkpoint or from nothing, or trains already.
            now: seconds, of any clock that goes on steadily. starts: which of the two.
        """
        last = None if starts else last_metrics(run.folder)
        first = last["iteration"] + 1 if last else _saved_steps(run.folder)
        self._watches[run.name] = _Watch(run, now, first, _size(run.folder))

    def end(self, run: Run, now: float) -> None:
        """A run that was watched is done."""
        self._measure(run, now, self._steps.get(run.name, 0))

    def seconds_left(
        self, now: float, active: Sequence[Run], waiting: Sequence[Run], elsewhere: Sequence[Run]
    ) -> float | None:
        """Seconds until all are done; None before the first pace is known.

        Args:
            active: that the workers train. waiting: in the order in which they will be started, as
                far as ``after`` allows. elsewhere: that others train, at no cost of a worker.
        """
        left = {}
        for run in (*active, *elsewhere):
            done = self._watches[run.name].steps_done()
            self._measure(run, now, done)
            left[run.name] = self._steps.get(run.name, 0) - done
        for run in waiting:
            left[run.name] = self._steps.get(run.name, 0) - _saved_steps(run.folder)
        if not self._paces:
            return None
        seconds = {
            run.name: self._pace(run) * max(left[run.name], 0) - self._advance(run, now)
            for run in (*active, *elsewhere, *waiting)
        }
        return _simulate(seconds, active, waiting, elsewhere, self._workers)

    def _measure(self, run: Run, now: float, done: int) -> None:
        watch = self._watches.get(run.name)
        if watch and done > watch.first and run.name in self._steps:
            self._paces[run.name] = run.row, (now - watch.since) / (done - watch.first)

    def _pace(self, run: Run) -> float:
        if run.name in self._paces:
            return self._paces[run.name][1]
        paces = [pace for row, pace in self._paces.values() if row == run.row]
        return mean(paces or [pace for _, pace in self._paces.values()])

    def _advance(self, run: Run, now: float) -> float:
        # of one that goes on although no step was seen yet
        watch = self._watches.get(run.name)
        return now - watch.since if watch and run.name not in self._paces else 0.0


def _simulate(
    seconds: Mapping[str, float],
    active: Collection[Run],
    waiting: Sequence[Run],
    elsewhere: Collection[Run],
    workers: int,
) -> float:
    now, waiting = 0.0, list(waiting)
    ends = {run.name: max(seconds[run.name], 0.0) for run in (*active, *elsewhere)}
    others = {run.name for run in elsewhere}
    while True:
        undone = {*ends, *(run.name for run in waiting)}
        free = workers - len({*ends} - others)
        for run in [run for run in waiting if not undone & {*run.after}][: max(free, 0)]:
            waiting.remove(run)
            ends[run.name] = now + seconds[run.name]
        if not ends:
            return now
        now = min(ends.values())
        ends = {name: end for name, end in ends.items() if end > now}


def _size(folder: Path) -> int:
    path = folder / "metrics.json"
    return path.stat().st_size if path.is_file() else 0


def _saved_steps(folder: Path) -> int:
    try:
        name = (folder / "last_checkpoint").read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return 0
    number = re.fullmatch(r"model_(\d+)\.pth", name.strip())
    return int(number[1]) + 1 if number else 0

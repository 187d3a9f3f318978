"""Trains several runs, each in its own process; some wait for others."""

import time
from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter

from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import Job, Workers
from dpk_det.comparison.made_with import check_age, check_config
from dpk_det.comparison.run import Run, describe, progress
from dpk_det.engine.signals import Stopped
from dpk_det.errors import BUSY, STOPPED, UserError

_SECONDS_BETWEEN_NEWS = 30
_SECONDS_BETWEEN_LOOKS = 2  # at runs that other processes train


def train_all(
    runs: Sequence[Run],
    workers: Workers,
    say: Callable[[str], None] = print,
    ended: Callable[[Run, bool], None] = lambda run, done: None,
    interrupts: Interrupts | None = None,
    patience: float = 600,
) -> None:
    """Train the unfinished runs, as many at a time as the workers take, and wait for the end.

    A failed run stops only the runs that need it. If another process trains a run, this function
    waits for it and does not train it again. If the function ends by an exception, such as an
    interrupt, trainings on this machine save and end; those on a cluster go on.

    Args:
        runs: in the order in which to start them, as far as ``after`` allows.
        workers: what trains them.
        say: gets a line at every start and end and, every half minute, how far each has come.
        ended: called with each run that has ended, and whether it is done.
        interrupts: tells when to stop.
        patience: seconds that a training has, when stopped, for a step and a checkpoint, or an
            evaluation.

    Raises:
        UserError: when runs failed, after all others, naming their logs; at once when a run was
            made with another config, or before a run that it needs.
        Stopped: when a signal came.
    """
    interrupts = interrupts or Interrupts()
    work = _Work(runs, workers, say, ended)
    with interrupts.noted():
        try:
            while work.goes_on:
                if interrupts.asked:
                    raise Stopped(f"Stopped by {interrupts.name}; call again to go on from there.")
                work.collect()
                work.look_elsewhere()
                work.start()
                work.report_ends()  # takes seconds; the next runs train already
                work.tell()
                time.sleep(0.2)
        finally:
            workers.leave(work.jobs, say, patience)
            work.report_ends()
    if work.failed:
        raise work.failure()


class _Work:
    """The state of all runs: ready, in training here or elsewhere, done, or failed."""

    def __init__(
        self,
        runs: Sequence[Run],
        workers: Workers,
        say: Callable[[str], None],
        ended: Callable[[Run, bool], None],
    ) -> None:
        self._runs, self._workers, self._say, self._ended = runs, workers, say, ended
        self._ends: list[tuple[Run, bool]] = []  # not reported yet
        self.jobs: list[Job] = []
        self._elsewhere: list[Run] = []
        self.failed: list[Run] = []
        self._lost: set[str] = set()  # failed runs, and runs that need them
        self._done = self._done_before()
        after = {run.name: {*run.after} - self._done for run in runs if run.name not in self._done}
        # A run that is never marked as done holds back the runs that need it.
        self._order = TopologicalSorter(after)
        self._order.prepare()
        self._ready = {*self._order.get_ready()}
        self._waited_for = {*after}
        self._next_look = 0.0
        self._next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS

    def _done_before(self) -> set[str]:
        by_name, done = {run.name: run for run in self._runs}, set()
        for run in self._runs:
            # Jobs may be submitted to a queue from a machine without a GPU.
            check_config(run, any_machine=self._workers.queues, say=self._say)
            check_age(run, [by_name[name] for name in run.after])
            if run.results is not None:
                done.add(run.name)
        wanted = {name for run in self._runs if run.name not in done for name in run.after}
        for name in wanted & done:
            if not by_name[name].weights.is_file():  # only its results were kept
                self._say(f"{name}: trained again, because its weights are not here")
                (by_name[name].folder / by_name[name].results_file).unlink()
                done.remove(name)
        for run in self._runs:
            if run.name in done:
                self._say(f"{run.name}: done before")
        return done

    @property
    def goes_on(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._ready or self.jobs or self._elsewhere)

    def collect(self) -> None:
        """Find the jobs that have ended, and record how."""
        for job, status in [(job, job.status()) for job in self.jobs]:
            if status is None:
                continue
            run = job.run
            self.jobs.remove(job)
            if status == BUSY:
                self._leave_to_others(run)
            elif self._is_done(run):
                self._finish(run, "done")
            elif {*run.after} & self._lost:
                self._lost.add(run.name)
            else:
                self.failed.append(run)
                self._lost.add(run.name)
                how = "was stopped by a signal" if status == STOPPED else "failed"
                self._say(f"{run.name}: {how}, log in {run.log}")
                self._ends.append((run, False))

    def look_elsewhere(self) -> None:
        """Check now and then which runs other processes have finished or given up."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        for run in [*self._elsewhere]:
            is_done = self._is_done(run)
            if not is_done and run.is_busy:
                continue
            self._elsewhere.remove(run)
            if is_done:
                self._finish(run, "done by another process")
            else:
                self._ready.add(run.name)

    def start(self) -> None:
        """Start the runs that are ready, while the workers have room."""
        for run in [run for run in self._runs if run.name in self._ready]:
            if not self._workers.has_room():
                return
            self._ready.remove(run.name)
            if self._is_done(run):
                self._finish(run, "done by another process")
            elif job := self._workers.find(run):
                self._took(job, "goes on")
            elif run.is_busy:
                self._leave_to_others(run)
            else:
                self._took(self._workers.start(run), "started")

    def report_ends(self) -> None:
        """Report the runs that have ended since the last call."""
        while self._ends:
            self._ended(*self._ends.pop(0))

    def _took(self, job: Job, how: str) -> None:
        self.jobs.append(job)
        self._say(f"{job.run.name}: {how}, log in {job.run.log}")
        if self._workers.queues:
            self._let_follow(job.run)

    def _let_follow(self, run: Run) -> None:
        if run.name in self._waited_for:
            self._waited_for.remove(run.name)
            self._order.done(run.name)
            self._ready |= {*self._order.get_ready()}

    def tell(self) -> None:
        """Say now and then how far all runs have come."""
        if time.monotonic() < self._next_news:
            return
        self._next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS
        goes_on = [*(job.run for job in self.jobs), *self._elsewhere]
        self._say("; ".join([self._state(), *map(progress, goes_on)]))

    def failure(self) -> UserError:
        """Return the error to raise at the end if a run has failed."""
        reached = self._done | {run.name for run in self.failed}
        lost = [run.name for run in self._runs if run.name not in reached]
        several = len(self.failed) > 1
        what = f"{len(self.failed)} trainings" if several else f"The training {self.failed[0].name}"
        also = f", so {', '.join(lost)} could not be trained" if lost else ""
        logs = ", ".join(str(run.log) for run in self.failed)
        return UserError(
            f"{what} failed{also}: the output is in {logs}; mend what it says and call again."
        )

    def _leave_to_others(self, run: Run) -> None:
        self._say(f"{run.name}: another process trains it, which is waited for")
        self._elsewhere.append(run)

    def _is_done(self, run: Run) -> bool:
        try:
            return run.results is not None
        except UserError as e:
            self._say(f"{run.name}: {e}")
            return False

    def _finish(self, run: Run, how: str) -> None:
        self._done.add(run.name)
        self._let_follow(run)
        self._say(f"{run.name}: {how}, {describe(run)} ({self._state()})")
        self._ends.append((run, True))

    def _state(self) -> str:
        return f"{len(self._done)} of {len(self._runs)} done"

"""Experiments of several trainings: each a process of its own, some waiting for others."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.made_with import check_age, check_config
from dpk_det.comparison.outlook import Outlook
from dpk_det.comparison.run import Run, last_metrics
from dpk_det.engine.lock import training_lock
from dpk_det.engine.signals import Stopped, with_parent
from dpk_det.errors import BUSY, STOPPED, BusyError, UserError
from dpk_det.files import no_room_ends

_SECONDS_BETWEEN_NEWS = 30
_SECONDS_BETWEEN_LOOKS = 2  # at what others train
_PATIENCE = 600  # seconds for a step and a checkpoint, or an evaluation


def train_all(
    runs: Sequence[Run],
    slots: Sequence[Mapping[str, str]],
    say: Callable[[str], None] = print,
    ended: Callable[[Run, bool], None] = lambda run, done: None,
    steps: Mapping[str, int] | None = None,
    interrupts: Interrupts | None = None,
) -> None:
    """Train what is not trained yet, one training a slot at a time, and wait for the end.

    A run that fails does not stop the others, but for those that come after it. What another
    process trains is waited for, not trained again. When this ends by an exception, such as an
    interrupt, the trainings are ended too; they save first.

    Args:
        runs: in the order in which to start them, as far as ``after`` allows.
        slots: what each worker adds to the environment of its trainings.
        say: gets a line at every start and end and, every half minute, how far each has come.
        ended: called with a run when it has ended, and whether it is done.
        steps: name of each training to its SOLVER.MAX_ITER, to tell how long all will take.
        interrupts: tells when to stop.

    Raises:
        UserError: when runs failed, at the end of all, naming their logs; at once when a run was
            made earlier with another config or before a run that it needs.
        Stopped: when a signal came.
    """
    interrupts = interrupts or Interrupts()
    work = _Work(runs, slots, say, ended, Outlook(steps or {}, len(slots)))
    with interrupts.noted():
        try:
            while work.goes_on:
                if interrupts.asked:
                    raise Stopped(f"Stopped by {interrupts.name}; call again to go on from there.")
                work.collect()
                work.look_elsewhere()
                work.start()
                work.tell()
                time.sleep(0.2)
        finally:
            work.end()
    if work.failed:
        raise _failure(work.failed, work.lost)


@dataclass(frozen=True)
class _Job:
    run: Run
    slot: Mapping[str, str]
    process: subprocess.Popen


class _Work:
    """What is waiting, what is being trained, here or elsewhere, and what has failed."""

    def __init__(
        self,
        runs: Sequence[Run],
        slots: Sequence[Mapping[str, str]],
        say: Callable[[str], None],
        ended: Callable[[Run, bool], None],
        outlook: Outlook,
    ) -> None:
        self._runs, self._say, self._ended, self._outlook = runs, say, ended, outlook
        self._waiting = _to_do(runs, say)
        self._free = list(slots)
        self._active: dict[str, _Job] = {}
        self._elsewhere: dict[str, Run] = {}
        self.failed: list[Run] = []
        self.lost: list[Run] = []
        self._next_look = 0.0
        self._next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS

    @property
    def goes_on(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._active or self._elsewhere)

    def collect(self) -> None:
        """See which trainings have ended, and how."""
        for job in [job for job in self._active.values() if job.process.poll() is not None]:
            run, status = job.run, job.process.returncode
            del self._active[run.name]
            self._free.append(job.slot)
            if status == BUSY:
                self._leave_to_others(run)
            elif self._is_done(run):
                self._done(run, "done")
            else:
                self.failed.append(run)
                how = "was stopped by a signal" if status == STOPPED else "failed"
                self._say(f"{run.name}: {how}, log in {run.log}")
                self._ended(run, False)
        gone = {run.name for run in (*self.failed, *self.lost)}
        for run in [run for run in self._waiting if gone & {*run.after}]:
            self._waiting.remove(run)
            self.lost.append(run)

    def look_elsewhere(self) -> None:
        """See, now and then, what others have done, or given up."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        for run in [*self._elsewhere.values()]:
            if self._is_done(run):
                del self._elsewhere[run.name]
                self._done(run, "done by another process")
            elif not _is_busy(run):
                del self._elsewhere[run.name]
                self._waiting = [x for x in self._runs if x in (run, *self._waiting)]

    def start(self) -> None:
        """Start what may be started."""
        unfinished = {run.name for run in (*self.failed, *self.lost, *self._waiting)}
        unfinished |= {*self._active, *self._elsewhere}
        for run in [run for run in self._waiting if not unfinished & {*run.after}]:
            if not self._free:
                return
            self._waiting.remove(run)
            if self._is_done(run):
                self._done(run, "done by another process")
            elif _is_busy(run):
                self._leave_to_others(run)
            else:
                slot = self._free.pop(0)
                self._outlook.watch(run, time.monotonic())
                self._active[run.name] = _Job(run, slot, _start(run, slot))
                self._say(f"{run.name}: started, log in {run.log}")

    def tell(self) -> None:
        """Say, now and then, how far all have come."""
        if time.monotonic() < self._next_news:
            return
        self._next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS
        goes_on = [*(job.run for job in self._active.values()), *self._elsewhere.values()]
        self._say("; ".join([self._state(), *map(progress, goes_on)]))

    def end(self) -> None:
        """End the trainings that go on; they save first."""
        _end([job.process for job in self._active.values()], self._say)

    def _leave_to_others(self, run: Run) -> None:
        self._say(f"{run.name}: another process trains it, which is waited for")
        self._elsewhere[run.name] = run
        self._outlook.watch(run, time.monotonic(), starts=False)

    def _is_done(self, run: Run) -> bool:
        try:
            return run.results is not None
        except UserError as e:
            self._say(f"{run.name}: {e}")
            return False

    def _done(self, run: Run, how: str) -> None:
        self._outlook.end(run, time.monotonic())
        self._say(f"{run.name}: {how}, {describe(run)} ({self._state()})")
        self._ended(run, True)

    def _state(self) -> str:
        undone = [*self._waiting, *self._active, *self._elsewhere, *self.failed, *self.lost]
        active = [job.run for job in self._active.values()]
        left = self._outlook.seconds_left(
            time.monotonic(), active, self._waiting, [*self._elsewhere.values()]
        )
        eta = f", about {math.ceil(left / 60)} min to go" if left else ""
        return f"{len(self._runs) - len(undone)} of {len(self._runs)} done{eta}"


def _to_do(runs: Sequence[Run], say: Callable[[str], None]) -> list[Run]:
    by_name = {run.name: run for run in runs}
    waiting = []
    for run in runs:
        check_config(run, say=say)
        check_age(run, [by_name[name] for name in run.after])
        if run.results is None:
            waiting.append(run)
        else:
            say(f"{run.name}: done before")
    return waiting


def _start(run: Run, slot: Mapping[str, str]) -> subprocess.Popen:
    with no_room_ends(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dpk_det.engine.train", *run.arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                # it ends with this process, however that ends
                env=os.environ | slot | with_parent(),
                # Ctrl-C is for this process alone, which then ends the trainings in good order
                start_new_session=True,
            )


def _is_busy(run: Run) -> bool:
    if not run.trains or not run.folder.is_dir():
        return False
    try:
        with training_lock(run.folder):
            return False
    except BusyError:
        return True


def _end(processes: Iterable[subprocess.Popen], say: Callable[[str], None]) -> None:
    processes = [process for process in processes if process.poll() is None]
    if not processes:
        return
    try:
        for process in processes:
            process.terminate()
        with contextlib.suppress(Exception):  # that may be why all end: nobody listens any more
            say(f"Ending {len(processes)} training(s); they save first. Ctrl-C ends them at once.")
        deadline = time.monotonic() + _PATIENCE
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline:  # stuck, perhaps in a driver
                break
            time.sleep(0.1)
    finally:  # at a second Ctrl-C too
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _failure(failed: Sequence[Run], lost: Sequence[Run]) -> UserError:
    what = f"The training {failed[0].name}" if len(failed) == 1 else f"{len(failed)} trainings"
    also = f", so {', '.join(run.name for run in lost)} could not be trained" if lost else ""
    logs = ", ".join(str(run.log) for run in failed)
    return UserError(
        f"{what} failed{also}: the output is in {logs}; mend what it says and call again."
    )


def describe(run: Run) -> str:
    """The figures of a finished run: its APs, or else the first that it has."""
    figures = {k: v for k, v in run.figures.items() if v is not None}
    if not figures:
        return "nothing measured"
    shown = [key for key in figures if key.endswith("/AP")] or list(figures)[:1]
    return ", ".join(f"{key.replace('/', ' ')} {figures[key]:.1f}" for key in shown)


def progress(run: Run) -> str:
    """How far a run has come, by the last line of its metrics."""
    last = last_metrics(run.folder)
    if not last:
        return f"{run.name}: starting"
    eta = f", {last['eta_seconds'] / 60:.0f} min to go" if "eta_seconds" in last else ""
    loss = f", loss {last['total_loss']:.2f}" if "total_loss" in last else ""
    return f"{run.name}: step {last['iteration'] + 1}{loss}{eta}"

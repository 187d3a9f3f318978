"""Signals end a training: it finishes its step, saves, and exits with ``errors.STOPPED``.

The signals are SIGTERM (a cluster, torchrun or ``compare.py`` ends the job), SIGUSR1 and SIGUSR2
(clusters send them some time before) and SIGINT (Ctrl-C). During set-up and evaluation, a training
has no step to finish and exits at once; out of an evaluation between two steps, one process alone
saves first. A second Ctrl-C always ends it at once.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from dpk_det.errors import STOPPED

PARENT = "DPK_DET_PARENT"
"""Environment variable: id of the process that started this one, which must not outlive it."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
INTERRUPTED = 130
# A terminal sends Ctrl-C to all processes, and torchrun passes it on to its workers, so workers
# get one press twice.
_SECONDS_OF_ONE_PRESS = 1.0
_PR_SET_PDEATHSIG = 1

_parent: int | None = None


class Stopped(SystemExit):
    """Ends a process that a signal has stopped, with the exit status ``errors.STOPPED``.

    It is no ``Exception``, so no code treats it as a failure.

    Attributes:
        message: the sentence to print.
    """

    def __init__(self, message: str) -> None:
        super().__init__(STOPPED)
        self.message = message


class _Watch:
    """The signals that came during a training."""

    def __init__(self) -> None:
        self.asked = 0  # the first signal that came, or 0
        self.since = 0.0  # the time at which it came
        self.in_step = False  # whether there is a step to finish

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: leave at once or after the step. A second Ctrl-C ends the process."""
        if not self.asked:
            self.asked, self.since = number, time.monotonic()
            if not self.in_step:
                self.leave()
        elif number == signal.SIGINT and time.monotonic() - self.since > _SECONDS_OF_ONE_PRESS:
            print("Interrupted at once.", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)

    def leave(self) -> None:
        name = signal.Signals(self.asked).name
        raise Stopped(f"Stopped by {name}; --resume goes on from the last checkpoint.")


_watch = _Watch()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Handle signals around a training and its set-up, so that they end it in good order.

    Raises:
        Stopped: in the code within, when a signal came. The process must end then. It ignores
            further signals except a second Ctrl-C, because a dying parent sends one signal for
            each of its threads.
    """
    global _watch
    _watch = _Watch()
    before = _install(_watch.take)
    try:
        yield
    except Stopped:
        before = {}  # keep the handlers, see above
        raise
    finally:
        _watch = _Watch()
        _restore(before)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let a signal end the code within at once. Use it for work such as an evaluation.

    Raises:
        Stopped: in the code within, or right away when a signal came before.
    """
    before, _watch.in_step = _watch.in_step, False
    try:
        if _watch.asked:
            _watch.leave()
        yield
    finally:
        _watch.in_step = before


class StopHook(HookBase):
    """Ends a training after the step in which a signal came, on all ranks after the same step.

    The trainer must have ``save_checkpoint()``, which all ranks call. Register the hook after the
    hook that saves checkpoints, and before the hook that evaluates. Several processes agree by
    reducing one number over gloo: 0.4 ms per step for two processes on two busy cores.
    """

    def before_train(self) -> None:
        """Let signals wait for the end of a step. All ranks create the group to agree in."""
        several = comm.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        _watch.in_step = True
        if _watch.asked:
            _watch.leave()

    def after_step(self) -> None:
        """Save a checkpoint and leave, if a signal came to any rank.

        Raises:
            Stopped: when a signal came.
        """
        asked = _watch.asked
        if self._group is not None:
            number = torch.tensor([asked])
            dist.all_reduce(number, dist.ReduceOp.MAX, self._group)
            asked = int(number)
        if not asked:
            return
        _watch.asked = asked
        if self.trainer.iter + 1 < self.trainer.max_iter:  # otherwise model_final is saved
            self.trainer.save_checkpoint()
        raise Stopped(
            f"Stopped by {signal.Signals(asked).name} after step {self.trainer.iter + 1}; "
            "--resume goes on from there."
        )

    def after_train(self) -> None:
        """Let signals end the training at once: no step is left to finish."""
        _watch.in_step = False


@contextlib.contextmanager
def pass_signals_on() -> Iterator[None]:
    """Pass the signals of this process on to the training processes that it waits for.

    These processes were started by :mod:`multiprocessing`. This process keeps waiting for them.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, number)

    before = _install(handle)
    try:
        yield
    finally:
        _restore(before)


def _install(handle: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    before = {}
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # nohup and "&" ignore some signals on purpose
                before[number] = handler
                signal.signal(number, handle)
    return before


def _restore(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def with_parent() -> dict[str, str]:
    """Return the environment variables for a training that must not outlive this process.

    Start the training in a thread that lives as long as this process, because Linux treats the
    thread as the parent.
    """
    return {PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Make Linux send this process SIGTERM when its parent ends. Other systems do nothing.

    Raises:
        Stopped: when the parent is gone already.
    """
    if sys.platform != "linux":
        return
    global _parent
    # The variable is for this process only. Its own children have another parent.
    _parent = int(os.environ.pop(PARENT, os.getppid()))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent_is_gone():
        raise Stopped("Stopped because the process that started this one is gone.")


def parent_is_gone() -> bool:
    """Whether the parent that :func:`die_with_parent` ties this process to is gone."""
    return _parent not in (None, os.getppid())

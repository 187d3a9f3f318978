"""Signals that end a training: it finishes its step, saves, and leaves with a status of its own.

They are SIGTERM (a cluster, torchrun or ``compare.py`` ends the job), SIGUSR1 and SIGUSR2 (clusters
send them some time before) and SIGINT (Ctrl-C). Where a training has no step to finish, in its
set-up and its evaluation, it leaves at once. Ctrl-C for a second time ends it at once wherever it
is.
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
"""Environment variable: the process that has started this one, and that it does not outlive."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
INTERRUPTED = 130
# A terminal sends Ctrl-C to all processes, and torchrun passes it on to its workers, so that these
# get it twice.
_SECONDS_OF_ONE_PRESS = 1.0
_PR_SET_PDEATHSIG = 1

_parent: int | None = None


class Stopped(SystemExit):
    """Ends a process that a signal has stopped, with the exit status ``errors.STOPPED``.

    It is no ``Exception``, so that nothing on its way takes it for a failure.

    Attributes:
        message: the sentence to print.
    """

    def __init__(self, message: str) -> None:
        super().__init__(STOPPED)
        self.message = message


class _Watch:
    """What has come of signals during a training."""

    def __init__(self) -> None:
        self.asked = 0  # the signal that has come, if any
        self.since = 0.0  # when
        self.in_step = False  # whether there is a step to finish

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
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
    """Around a training, its set-up included: the signals end it in good order.

    Raises:
        Stopped: out of the code within, when a signal has come. The process is to end then, and
            takes no notice of more signals (but of Ctrl-C for a second time): a parent that dies
            sends several, one for each of its threads.
    """
    global _watch
    _watch = _Watch()
    before = _install(_watch.take)
    try:
        yield
    except Stopped:
        before = {}  # what takes the signals stays
        raise
    finally:
        _watch = _Watch()
        _restore(before)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Around what there is no use in finishing, such as an evaluation: a signal ends it at once.

    Raises:
        Stopped: out of the code within, or right away when a signal has come before.
    """
    before, _watch.in_step = _watch.in_step, False
    try:
        if _watch.asked:
            _watch.leave()
        yield
    finally:
        _watch.in_step = before


class StopHook(HookBase):
    """Ends a training after the step in which a signal came, on all ranks after the same.

    The trainer must have ``save_checkpoint()``, which all ranks call. Register the hook after the
    one that saves from time to time, and before the one that evaluates. Many processes agree by a
    number that is reduced over gloo: 0.4 ms per step for two processes on two busy cores.
    """

    def before_train(self) -> None:
        """Begin to finish steps. All ranks make the group in which they agree."""
        several = comm.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        _watch.in_step = True
        if _watch.asked:
            _watch.leave()

    def after_step(self) -> None:
        """Save and leave, if a signal has come to any rank.

        Raises:
            Stopped: then.
        """
        asked = _watch.asked
        if self._group is not None:
            number = torch.tensor([asked])
            dist.all_reduce(number, dist.ReduceOp.MAX, self._group)
            asked = int(number)
        if not asked:
            return
        _watch.asked = asked
        if self.trainer.iter + 1 < self.trainer.max_iter:  # else the final model is saved
            self.trainer.save_checkpoint()
        raise Stopped(
            f"Stopped by {signal.Signals(asked).name} after step {self.trainer.iter + 1}; "
            "--resume goes on from there."
        )

    def after_train(self) -> None:
        """There are no more steps to finish."""
        _watch.in_step = False


@contextlib.contextmanager
def pass_signals_on() -> Iterator[None]:
    """Around the wait for processes that :mod:`multiprocessing` has started, which train.

    They get the signals that this process gets, and it waits on for their end.
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
    if threading.current_thread() is threading.main_thread():  # others may not
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # nohup and "&" have it ignored
                before[number] = handler
                signal.signal(number, handle)
    return before


def _restore(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def with_parent() -> dict[str, str]:
    """What to add to the environment of a training that is not to outlive this process.

    The process must be started in a thread that lives as long: Linux takes the thread for the
    parent.
    """
    return {PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Let this process get SIGTERM when the process that has started it is gone; Linux only.

    Raises:
        Stopped: when it is gone already.
    """
    if sys.platform != "linux":
        return
    global _parent
    # of this process alone: those that it starts have another parent
    _parent = int(os.environ.pop(PARENT, os.getppid()))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent_is_gone():
        raise Stopped("Stopped because the process that started this one is gone.")


def parent_is_gone() -> bool:
    """Whether the process is gone with which :func:`die_with_parent` has this one end."""
    return _parent not in (None, os.getppid())

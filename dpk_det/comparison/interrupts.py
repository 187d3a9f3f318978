"""Signals that end a comparison."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from dpk_det.engine.signals import SIGNALS, Stopped


class Interrupts:
    """Takes the signals that end a process: SIGTERM, SIGUSR1, SIGUSR2 and SIGINT.

    The first ends the process at once, or is noted where code has asked for that (:meth:`noted`).
    A later SIGINT raises ``KeyboardInterrupt``; other later ones are ignored.

    Attributes:
        asked: the signal that was noted; 0 for none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._notes = False

    @property
    def name(self) -> str:
        """Of the signal that was noted."""
        return signal.Signals(self.asked).name

    @contextlib.contextmanager
    def taken(self) -> Iterator["Interrupts"]:
        """Take the signals within; only the main thread may."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup or "&"
                    before[number] = signal.signal(number, self._handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Only note the first signal within; the code looks at ``asked`` from time to time."""
        self._notes = True
        try:
            yield
        finally:
            self._notes = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked = number
        if not self._notes:
            raise Stopped(f"Stopped by {self.name}; nothing was being trained.")

"""Signals that end a comparison."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from dpk_det.engine.signals import SIGNALS, Stopped


class Interrupts:
    """Handles the signals that end a process: SIGTERM, SIGUSR1, SIGUSR2 and SIGINT.

    The first signal ends the process at once; inside :meth:`noted` it is only noted. A later SIGINT
    raises ``KeyboardInterrupt``. Other later signals are ignored.

    Attributes:
        asked: number of the first signal; 0 if none came.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._notes = False

    @property
    def name(self) -> str:
        """Name of the first signal."""
        return signal.Signals(self.asked).name

    @contextlib.contextmanager
    def taken(self) -> Iterator["Interrupts"]:
        """Handle the signals inside the block; outside the main thread, do nothing."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # nohup and "&" ignore some signals, which must stay ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Only note the first signal inside the block; the code there checks ``asked`` often."""
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

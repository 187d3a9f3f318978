"""Data loader workers leave signals to the process that trains."""

import os
import signal
import threading


def leave_signals_to_parent(worker: int) -> None:
    """As a data loader's ``worker_init_fn``: only its parent ends a worker.

    Terminals and clusters send signals to a group of processes. The training has a step to finish
    then, for which it needs its workers.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which tells who has sent it; macOS lacks it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parents_signal, daemon=True).start()


def _end_with_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

"""Make data loader workers leave signals to the training process."""

import os
import signal
import threading


def leave_signals_to_parent(worker: int) -> None:
    """Let only its parent end a data loader worker. Use this as ``worker_init_fn``.

    Terminals and clusters send signals to a group of processes. The training process then still
    finishes a step, and needs its workers for that.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # it tells who sent the signal; macOS lacks it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parents_signal, daemon=True).start()


def _end_with_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

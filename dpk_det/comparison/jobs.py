"""What trains runs, as an interface, and this machine as one: processes in slots."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dpk_det.comparison.run import Run
from dpk_det.engine.signals import with_parent
from dpk_det.errors import UserError
from dpk_det.files import no_room_ends


def make_slots(
    workers: int | None = None, threads: int = 1, gpus: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The environments in which trainings may run side by side, one each at a time.

    Args:
        workers: how many. By default one a GPU; without a GPU two, on a machine with two cores.
        threads: CPU threads of each.
        gpus: as CUDA_VISIBLE_DEVICES counts or names them, dealt out in turn. By default all that
            are visible.

    Raises:
        UserError: when there is no GPU of those asked for, or a number is not positive.
    """
    for option, number in (("--workers", workers), ("--threads", threads)):
        if number is not None and number < 1:
            raise UserError(f"{option} is {number}: give a number from 1 on.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and not count:
        raise UserError("--gpus is given but torch finds no GPU here: leave it out.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    for gpu in gpus if visible is None else ():
        if gpu.isdecimal() and int(gpu) >= count:
            raise UserError(
                f"--gpus names GPU {gpu} but this machine has {count}, counted from 0: name those."
            )
    if count and not gpus:
        gpus = visible.split(",") if visible else [str(i) for i in range(count)]
    workers = workers or len(gpus) or min(2, os.cpu_count() or 1)
    slots = [threads_of(threads)] * workers
    if not gpus:
        return slots
    return [slot | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i, slot in enumerate(slots)]


def threads_of(number: int) -> dict[str, str]:
    """The environment of a process that has so many CPU threads."""
    return {"OMP_NUM_THREADS": str(number), "MKL_NUM_THREADS": str(number)}


class Job(Protocol):
    """A run that is being trained."""

    run: Run

    def status(self) -> int | None:
        """None while it goes on, then its exit status."""


class Workers(Protocol):
    """What trains runs: this machine, or a cluster.

    Attributes:
        queues: whether it takes a run before those are done that the run needs, and starts it after
            them by itself.
    """

    queues: bool

    def has_room(self) -> bool:
        """Whether it takes another run now."""

    def find(self, run: Run) -> Job | None:
        """A job of this run that an earlier process has started and that goes on by itself."""

    def start(self, run: Run) -> Job:
        """Start a run.

        Raises:
            UserError: when that is refused, or the run's folder cannot be written.
        """

    def leave(self, jobs: Iterable[Job], say: Callable[[str], None], patience: float) -> None:
        """See to the jobs that still go on when nobody waits for them any more.

        Args:
            jobs: may be over. say: gets a line. patience: seconds that this may take.
        """


@dataclass(frozen=True)
class LocalJob:
    """A process that trains a run on this machine."""

    run: Run
    process: subprocess.Popen

    def status(self) -> int | None:
        """None while it goes on, then its exit status."""
        return self.process.poll()


class Slots:
    """This machine as workers: one training a slot at a time. They end with this process.

    Args:
        slots: what each slot adds to the environment of its trainings; see :func:`make_slots`.
    """

    queues = False

    def __init__(self, slots: Sequence[Mapping[str, str]]) -> None:
        self._slots = slots
        self._jobs: list[LocalJob | None] = [None] * len(slots)

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free())

    def _free(self) -> list[int]:
        jobs = enumerate(self._jobs)
        return [place for place, job in jobs if job is None or job.status() is not None]

    def find(self, run: Run) -> LocalJob | None:
        """Nothing: a job ends with the process that has started it."""
        return None

    def start(self, run: Run) -> LocalJob:
        """Start a run in a free slot."""
        place = self._free()[0]
        self._jobs[place] = job = start_job(run, self._slots[place])
        return job

    def leave(self, jobs: Iterable[LocalJob], say: Callable[[str], None], patience: float) -> None:
        """End what still goes on. Trainings save first; who takes longer is killed."""
        going = [job.process for job in jobs if job.status() is None]
        if not going:
            return
        try:
            for process in going:
                process.terminate()
            with contextlib.suppress(Exception):  # that may be why all end: nobody listens any more
                say(f"Ending {len(going)} training(s); they save first. Ctrl-C ends them at once.")
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(process.poll() is None for process in going):
                time.sleep(0.1)
        finally:  # at a second Ctrl-C too
            for process in going:
                if process.poll() is None:  # stuck, perhaps in a driver
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def start_job(run: Run, environment: Mapping[str, str]) -> LocalJob:
    """Start the process of a run. Its output goes to the run's log.

    Args:
        environment: what is added to that of this process.

    Raises:
        UserError: when the run's folder cannot be written.
    """
    with no_room_ends(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dpk_det.engine.train", *run.arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                # it ends with this process, however that ends
                env=os.environ | environment | with_parent(),
                # Ctrl-C is for this process alone, which then ends the trainings in good order
                start_new_session=True,
            )
    return LocalJob(run, process)

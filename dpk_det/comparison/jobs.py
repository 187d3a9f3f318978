"""Workers that train runs: their interface, and this machine's processes in slots."""

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
    """Return the environments of trainings that run side by side, one training per environment.

    Args:
        workers: number of environments. Default: one per GPU; without a GPU, one per core, two at
            most.
        threads: CPU threads of each training.
        gpus: GPUs as CUDA_VISIBLE_DEVICES counts or names them, assigned in turn. Default: all
            visible GPUs.

    Raises:
        UserError: when a requested GPU is absent, or a number is not positive.
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
    """Return the environment that limits a process to a number of CPU threads."""
    return {"OMP_NUM_THREADS": str(number), "MKL_NUM_THREADS": str(number)}


class Job(Protocol):
    """A run that is being trained."""

    run: Run

    def status(self) -> int | None:
        """Return None while the job goes on, then its exit status."""


class Workers(Protocol):
    """Workers that train runs: this machine, or a cluster.

    Attributes:
        queues: whether they accept a run before the runs that it needs are done, and start it after
            them on their own.
    """

    queues: bool

    def has_room(self) -> bool:
        """Return whether the workers take another run now."""

    def find(self, run: Run) -> Job | None:
        """Return a job of this run that an earlier process started and that goes on, or None."""

    def start(self, run: Run) -> Job:
        """Start a run.

        Raises:
            UserError: when the run is refused, or its folder cannot be written.
        """

    def leave(self, jobs: Iterable[Job], say: Callable[[str], None], patience: float) -> None:
        """Handle the jobs that still go on when nobody waits for them any more.

        Args:
            jobs: all jobs; some may be over.
            say: gets a line.
            patience: seconds that this may take.
        """


@dataclass(frozen=True)
class LocalJob:
    """A process that trains a run on this machine."""

    run: Run
    process: subprocess.Popen

    def status(self) -> int | None:
        """Return None while the job goes on, then its exit status."""
        return self.process.poll()


class Slots:
    """This machine as workers: one training per slot at a time. Trainings end with this process.

    Args:
        slots: variables that each slot adds to its trainings' environment; see :func:`make_slots`.
    """

    queues = False

    def __init__(self, slots: Sequence[Mapping[str, str]]) -> None:
        self._slots = slots
        self._jobs: list[LocalJob | None] = [None] * len(slots)

    def has_room(self) -> bool:
        """Return whether a slot is free."""
        return bool(self._free())

    def _free(self) -> list[int]:
        jobs = enumerate(self._jobs)
        return [place for place, job in jobs if job is None or job.status() is not None]

    def find(self, run: Run) -> LocalJob | None:
        """Return None, because a job ends with the process that started it."""
        return None

    def start(self, run: Run) -> LocalJob:
        """Start a run in a free slot."""
        place = self._free()[0]
        self._jobs[place] = job = start_job(run, self._slots[place])
        return job

    def leave(self, jobs: Iterable[LocalJob], say: Callable[[str], None], patience: float) -> None:
        """End the jobs that still go on. They save first; after ``patience`` they are killed."""
        going = [job.process for job in jobs if job.status() is None]
        if not going:
            return
        try:
            for process in going:
                process.terminate()
            # A closed output may be the reason for this end, and must not stop it.
            with contextlib.suppress(Exception):
                say(f"Ending {len(going)} training(s); they save first. Ctrl-C ends them at once.")
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(process.poll() is None for process in going):
                time.sleep(0.1)
        finally:  # also after a second Ctrl-C
            for process in going:
                if process.poll() is None:  # stuck, perhaps in a driver
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def start_job(run: Run, environment: Mapping[str, str]) -> LocalJob:
    """Start the process of a run. Its output goes to the run's log.

    Args:
        run: run to start.
        environment: variables to add to those of this process.

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
                # The training ends with this process, even if this process is killed.
                env=os.environ | environment | with_parent(),
                # Only this process gets Ctrl-C; it then ends the trainings in order.
                start_new_session=True,
            )
    return LocalJob(run, process)

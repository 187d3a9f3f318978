"""Processes that train: the environments in which they may, how they start, how they end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
    slots = [{"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}] * workers
    if not gpus:
        return slots
    return [slot | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i, slot in enumerate(slots)]


@dataclass(frozen=True)
class Job:
    """A run that is being trained, in a slot."""

    run: Run
    slot: Mapping[str, str]
    process: subprocess.Popen


def start_job(run: Run, slot: Mapping[str, str]) -> Job:
    """Start the process of a run. Its output goes to the run's log.

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
                env=os.environ | slot | with_parent(),
                # Ctrl-C is for this process alone, which then ends the trainings in good order
                start_new_session=True,
            )
    return Job(run, slot, process)


def end_jobs(jobs: Iterable[Job], say: Callable[[str], None], patience: float) -> None:
    """End what still goes on. Trainings save first; who takes longer is killed.

    Args:
        jobs: may be over. say: gets a line. patience: seconds for a training to save.
    """
    going = [job.process for job in jobs if job.process.poll() is None]
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

"""A cluster that trains runs: each run is a job of Slurm, submitted by submitit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from dpk_det.comparison.jobs import start_job
from dpk_det.comparison.run import Run
from dpk_det.errors import BUSY, STOPPED, UserError, reason
from dpk_det.files import no_room_ends, write_whole

CLUSTERS = ("slurm",)
DEFAULTS = {"timeout_min": 240, "gpus_per_node": 1, "slurm_signal_delay_s": 120}
"""Default options of a job, by the names of submitit's AutoExecutor."""

_JOB = "cluster_job"  # file in a run's folder with the number of its job
_SECONDS_BETWEEN_LOOKS = 5  # at the queue
# Shared folders show new files late. A job without results has failed only after this time.
_SECONDS_FOR_FILES = 30
_NEAR_LIMIT = (signal.SIGUSR1, signal.SIGUSR2)  # they tell a job that its time is nearly over
_MOST_TIMEOUTS = 10_000  # a training may reach its time limit any number of times


@dataclass(frozen=True)
class Training:
    """A run as a function that submitit calls inside its job.

    The run trains in a child process, which gets all signals. SIGUSR1 and SIGUSR2 mean that the
    time limit is near, or that others need the machine: the training saves, and the job asks Slurm
    to queue it again and then resumes. SIGTERM means that somebody cancels the job, or that Slurm
    queues it again by itself, so the job asks for nothing.

    Attributes:
        run: run to train.
        environment: variables to add to those of the job.
    """

    run: Run
    environment: Mapping[str, str]

    def __call__(self) -> None:
        """Train.

        Raises:
            RuntimeError: when the training did not finish.
        """
        # submitit's handler of the signal that it asks Slurm to send
        number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
        queue_again = signal.getsignal(number)
        asked, jobs = [], []

        def pass_on(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            for job in jobs:
                job.process.send_signal(number)

        for taken in (signal.SIGTERM, *_NEAR_LIMIT):
            signal.signal(taken, pass_on)
        jobs.append(start_job(self.run, self.environment))
        for early in [*asked]:
            jobs[0].process.send_signal(early)
        status = jobs[0].process.wait()
        # During set-up or evaluation the signal itself may end the process (negative status).
        if status in {STOPPED, *(-x for x in asked)} and any(x in _NEAR_LIMIT for x in asked):
            queue_again(number, None)  # ends this process
        if status:
            raise RuntimeError(f"{self.run.name} ended with status {status}: see {self.run.log}.")

    def checkpoint(self) -> Any:
        """Return the call for a job that runs again: the same one, because trainings resume."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class ClusterJob:
    """A job of a run, which may wait, train, or be over.

    Attributes:
        run: run of the job.
        number: Slurm's number of the job.
        is_queued: returns whether the cluster still has the job.
    """

    run: Run
    number: str
    is_queued: Callable[[], bool]
    _missed_since: float | None = field(default=None, init=False)

    def status(self) -> int | None:
        """Return None while it waits or trains; then 0 with results, 1 without, or ``BUSY``."""
        if self.is_queued():
            self._missed_since = None
            return None
        if (self.run.folder / self.run.results_file).exists():
            return 0
        if self.run.is_busy:  # another process trains it
            return BUSY
        self._missed_since = self._missed_since or time.monotonic()
        return 1 if time.monotonic() - self._missed_since > _SECONDS_FOR_FILES else None


class Cluster:
    """Slurm as workers. Its jobs outlive this process; a later call waits for the same jobs.

    Slurm gets all jobs at once, each with the jobs that it has to wait for.

    Args:
        folder: folder for submitit's files; all machines must see it.
        options: options of each job, by the names of submitit's AutoExecutor; they replace and
            extend :data:`DEFAULTS`.
        environment: variables to add to those of each job.

    Raises:
        UserError: when submitit or Slurm is absent, or for an option that submitit does not have.
    """

    queues = True

    def __init__(
        self, folder: Path, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        try:
            import submitit
        except ImportError as e:
            raise UserError(
                "--cluster needs submitit: install it with pip install 'dpk_det[slurm]'."
            ) from e
        self._environment = environment
        self._queue: dict[str, str] | None = {}
        self._next_look = 0.0
        self._options = {**DEFAULTS, **options}
        if not self._options["gpus_per_node"]:
            self._options["gpus_per_node"] = None  # a cluster without GPUs rejects this option
        if cpus := self._options.get("cpus_per_task"):
            # Since Slurm 22.05, srun does not take this number from its job.
            self._options.setdefault("slurm_srun_args", [f"--cpus-per-task={cpus}"])
        try:
            self._executor = submitit.AutoExecutor(
                folder, cluster="slurm", slurm_max_num_timeout=_MOST_TIMEOUTS
            )
            self._executor.update_parameters(**self._options)
        except RuntimeError as e:
            raise UserError(
                f"There is no Slurm here ({reason(e)}): call from a machine that has it."
            ) from e
        except (AssertionError, NameError, TypeError, ValueError) as e:
            raise UserError(
                f"--job has what submitit does not take ({reason(e)}): see its AutoExecutor."
            ) from e

    def has_room(self) -> bool:
        """Return True, because jobs wait in Slurm's queue."""
        return True

    def find(self, run: Run) -> ClusterJob | None:
        """Return the run's job that an earlier call submitted, if it goes on."""
        number = _read(run.folder)
        if number is None or not self._is_queued(number) or self._is_ending(number):
            return None
        return self._job(run, number)

    def start(self, run: Run) -> ClusterJob:
        """Submit a run, which starts when the runs that it needs are done.

        Raises:
            UserError: when Slurm refuses the job, or the run's folder cannot be written.
        """
        self._executor.update_parameters(name=run.name, **self._after(run))
        try:
            with no_room_ends(run.folder):
                run.folder.mkdir(parents=True, exist_ok=True)
                job = self._executor.submit(Training(run, self._environment))
        except (RuntimeError, subprocess.SubprocessError) as e:  # submitit raises RuntimeErrors
            raise UserError(
                f"Slurm does not take the job of {run.name} ({reason(e)}): mend --job."
            ) from e
        try:
            write_whole(run.folder / _JOB, job.job_id)
        except UserError:  # a later call could not find the job
            job.cancel(check=False)
            raise
        if self._queue is not None:  # until the next look
            self._queue[job.job_id] = "PD"
        return self._job(run, job.job_id)

    def leave(
        self, jobs: Iterable[ClusterJob], say: Callable[[str], None], patience: float
    ) -> None:
        """Say that the jobs go on, and how to end them."""
        going = [job.number for job in jobs if job.is_queued()]
        if going:
            say(
                f"{len(going)} job(s) go on without this command: call it again to wait for them, "
                f"or end them by scancel {' '.join(going)}."
            )

    def _job(self, run: Run, number: str) -> ClusterJob:
        return ClusterJob(run, number, lambda: self._is_queued(number))

    def _after(self, run: Run) -> dict[str, Any]:
        folders = (run.folder.parent / name for name in run.after)
        numbers = [number for folder in folders if (number := _read(folder))]
        needed = [number for number in numbers if self._is_queued(number)]
        given = dict(self._options.get("slurm_additional_parameters") or {})
        if needed:  # with kill-on-invalid-dep, a job that can never start leaves the queue
            given |= {"dependency": "afterok:" + ":".join(needed), "kill-on-invalid-dep": "yes"}
        return {"slurm_additional_parameters": {"requeue": True, **given}}

    def _is_queued(self, number: str) -> bool:
        if time.monotonic() >= self._next_look:
            command = ["squeue", "--me", "--noheader", "--format=%A %t"]
            answer = subprocess.run(command, capture_output=True, text=True)
            known = answer.returncode == 0  # otherwise the controller is away
            lines = map(str.split, answer.stdout.splitlines())
            self._queue = dict(x for x in lines if len(x) == 2) if known else None
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        # Without an answer from Slurm, a job counts as going on.
        return self._queue is None or number in self._queue

    def _is_ending(self, number: str) -> bool:
        return self._queue is not None and self._queue.get(number) == "CG"


def _read(folder: Path) -> str | None:
    try:
        return (folder / _JOB).read_text()
    except OSError:
        return None

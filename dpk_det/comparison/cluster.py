"""A cluster that trains runs: each is a job of Slurm, submitted by submitit."""

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
from dpk_det.errors import STOPPED, UserError, reason
from dpk_det.files import no_room_ends, write_whole

CLUSTERS = ("slurm", "local")
DEFAULTS = {"timeout_min": 240, "gpus_per_node": 1, "slurm_signal_delay_s": 120}
"""Of a job, by the names that submitit's AutoExecutor has for it."""

_JOB = "cluster_job"  # the number of its job, in a run's folder
_SECONDS_BETWEEN_LOOKS = 5  # at the queue
# Shared folders show new files late: so long a job may be over before its results are missed.
_SECONDS_FOR_FILES = 30
_OF_ONE_LIMIT = (signal.SIGUSR1, signal.SIGUSR2)  # what tells a job that its time is nearly over
_MOST_TIMEOUTS = 10_000  # a training may take any number of time limits


@dataclass(frozen=True)
class Training:
    """A run as a function that submitit calls within its job.

    It trains in a process of its own, to which it passes signals on. Where one of them tells that
    the time limit is near, or that others need the machine (SIGUSR1, SIGUSR2), the training saves,
    and Slurm is asked to queue the job again, which then goes on from there. SIGTERM comes from who
    cancels the job, or from a Slurm that queues it again by itself; there is nothing to ask for.

    Attributes:
        environment: what is added to that of the job.
    """

    run: Run
    environment: Mapping[str, str]

    def __call__(self) -> None:
        """Train.

        Raises:
            RuntimeError: when the training has not come to its end.
        """
        # submitit's handler of the signal that it asks Slurm for
        number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
        queue_again = signal.getsignal(number)
        asked = []
        job = start_job(self.run, self.environment)

        def pass_on(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            job.process.send_signal(number)

        for taken in (signal.SIGTERM, *_OF_ONE_LIMIT):
            signal.signal(taken, pass_on)
        status = job.process.wait()
        if status == STOPPED and any(x in _OF_ONE_LIMIT for x in asked):
            queue_again(number, None)  # ends this process
        if status:
            raise RuntimeError(f"{self.run.name} ended with status {status}: see {self.run.log}.")

    def checkpoint(self) -> Any:
        """What submitit is to call when the job runs again: the same, for trainings resume."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class ClusterJob:
    """A job of a run, which may wait, train, or be over.

    Attributes:
        goes_on: tells whether the cluster still has it.
    """

    run: Run
    number: str
    goes_on: Callable[[], bool]
    _missed_since: float | None = field(default=None, init=False)

    def status(self) -> int | None:
        """None while it waits or trains; 0 once its results are here; 1 when it is over without."""
        if (self.run.folder / self.run.results_file).exists():
            return 0
        if self.goes_on():
            self._missed_since = None
            return None
        self._missed_since = self._missed_since or time.monotonic()
        return 1 if time.monotonic() - self._missed_since > _SECONDS_FOR_FILES else None


class Cluster:
    """A cluster as workers, which outlive this process: called again, it waits for the same jobs.

    Slurm gets all jobs at once, each with those that it has to wait for. On this machine, "local",
    submitit starts them without a queue, so that as many run at a time as ``workers`` says.

    Args:
        name: of :data:`CLUSTERS`. folder: for submitit's files; all machines must see it.
        options: of each job, by the names of submitit's AutoExecutor; more than :data:`DEFAULTS`.
        environment: what is added to that of each job. workers: jobs at a time, "local" alone.

    Raises:
        UserError: when submitit or Slurm is absent, or for an option that submitit does not have.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        options: Mapping[str, Any],
        environment: Mapping[str, str],
        workers: int = 1,
    ) -> None:
        try:
            import submitit
        except ImportError as e:
            raise UserError(
                "--cluster needs submitit: install it with pip install 'dpk_det[slurm]'."
            ) from e
        self.queues = name == "slurm"
        self._environment, self._workers = environment, workers
        self._started: list[ClusterJob] = []
        self._queue: set[str] | None = None
        self._next_look = 0.0
        self._options = {**DEFAULTS, **options}
        if not (self.queues and self._options["gpus_per_node"]):
            self._options["gpus_per_node"] = None  # a cluster without GPUs knows no such option
        try:
            self._executor = submitit.AutoExecutor(
                folder, cluster=name, slurm_max_num_timeout=_MOST_TIMEOUTS
            )
            self._executor.update_parameters(**self._options)
        except RuntimeError as e:
            raise UserError(
                f"There is no Slurm here ({reason(e)}): call from a machine of it."
            ) from e
        except (AssertionError, NameError, TypeError, ValueError) as e:
            raise UserError(
                f"--job has what submitit does not take ({reason(e)}): see its AutoExecutor."
            ) from e

    def has_room(self) -> bool:
        """Whether a job may be submitted."""
        going = [job for job in self._started if job.status() is None]
        return self.queues or len(going) < self._workers

    def find(self, run: Run) -> ClusterJob | None:
        """The run's job that an earlier call has submitted, where it goes on."""
        number = self._number(run)
        if number is None or not self._is_queued(number):
            return None
        return self._keep(run, number, lambda: self._is_queued(number))

    def start(self, run: Run) -> ClusterJob:
        """Submit a run, to start when those are done that it needs."""
        if self.queues:
            self._executor.update_parameters(**self._after(run))
        try:
            with no_room_ends(run.folder):
                run.folder.mkdir(parents=True, exist_ok=True)
                job = self._executor.submit(Training(run, self._environment))
                write_whole(run.folder / _JOB, job.job_id)
        except (RuntimeError, subprocess.SubprocessError) as e:  # submitit's are among the first
            raise UserError(
                f"Slurm does not take the job of {run.name} ({reason(e)}): mend --job."
            ) from e
        self._next_look = 0.0  # the queue has changed
        if self.queues:
            return self._keep(run, job.job_id, lambda: self._is_queued(job.job_id))
        return self._keep(run, job.job_id, lambda: not job.done())

    def leave(
        self, jobs: Iterable[ClusterJob], say: Callable[[str], None], patience: float
    ) -> None:
        """Say that they go on, and how to end them."""
        going = [job.number for job in jobs if job.status() is None]
        if going:
            end = "scancel" if self.queues else "kill"
            say(
                f"{len(going)} job(s) go on without this command: call it again to wait for them, "
                f"or end them by {end} {' '.join(going)}."
            )

    def _keep(self, run: Run, number: str, goes_on: Callable[[], bool]) -> ClusterJob:
        self._started.append(ClusterJob(run, number, goes_on))
        return self._started[-1]

    def _after(self, run: Run) -> dict[str, Any]:
        folders = (run.folder.parent / name for name in run.after)
        numbers = [number for folder in folders if (number := _read(folder))]
        needed = [number for number in numbers if self._is_queued(number)]
        given = dict(self._options.get("slurm_additional_parameters", {}))
        if needed:  # a job whose turn can never come is taken out of the queue
            given |= {"dependency": "afterok:" + ":".join(needed), "kill-on-invalid-dep": "yes"}
        return {
            "name": run.name,
            "slurm_additional_parameters": {"requeue": True, **given},
        }

    def _number(self, run: Run) -> str | None:
        return _read(run.folder) if self.queues else None

    def _is_queued(self, number: str) -> bool:
        if time.monotonic() >= self._next_look:
            command = ["squeue", "--me", "--noheader", "--format=%A"]
            answer = subprocess.run(command, capture_output=True, text=True)
            known = answer.returncode == 0  # else the controller is away
            self._queue = {*answer.stdout.split()} if known else None
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        return self._queue is None or number in self._queue  # what is not known to be over goes on


def _read(folder: Path) -> str | None:
    try:
        return (folder / _JOB).read_text()
    except OSError:
        return None

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
from dpk_det.errors import BUSY, STOPPED, UserError, reason
from dpk_det.files import no_room_ends, write_whole

CLUSTERS = ("slurm",)
DEFAULTS = {"timeout_min": 240, "gpus_per_node": 1, "slurm_signal_delay_s": 120}
"""Of a job, by the names that submitit's AutoExecutor has for it."""

_JOB = "cluster_job"  # the number of its job, in a run's folder
_SECONDS_BETWEEN_LOOKS = 5  # at the queue
# Shared folders show new files late: so long a job may be over before its results are missed.
_SECONDS_FOR_FILES = 30
_NEAR_LIMIT = (signal.SIGUSR1, signal.SIGUSR2)  # what tells a job that its time is nearly over
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
        # one that is still being set up, or evaluates, dies of the signal itself
        if status in {STOPPED, *(-x for x in asked)} and any(x in _NEAR_LIMIT for x in asked):
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
        is_queued: tells whether the cluster still has it.
    """

    run: Run
    number: str
    is_queued: Callable[[], bool]
    _missed_since: float | None = field(default=None, init=False)

    def status(self) -> int | None:
        """None while it waits or trains; then 0 with results, 1 without, or ``errors.BUSY``."""
        if self.is_queued():
            self._missed_since = None
            return None
        if (self.run.folder / self.run.results_file).exists():
            return 0
        if self.run.is_busy:  # another one trains it: a job of somebody else, say
            return BUSY
        self._missed_since = self._missed_since or time.monotonic()
        return 1 if time.monotonic() - self._missed_since > _SECONDS_FOR_FILES else None


class Cluster:
    """Slurm as workers. Its jobs outlive this process: called again, it waits for the same ones.

    Slurm gets all jobs at once, each with those that it has to wait for.

    Args:
        folder: for submitit's files; all machines must see it.
        options: of each job, by the names of submitit's AutoExecutor; more than :data:`DEFAULTS`.
        environment: what is added to that of each job.

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
            self._options["gpus_per_node"] = None  # a cluster without GPUs knows no such option
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
        """It has: who waits, waits in its queue."""
        return True

    def find(self, run: Run) -> ClusterJob | None:
        """The run's job that an earlier call has submitted, where it goes on."""
        number = _read(run.folder)
        if number is None or not self._is_queued(number) or self._is_ending(number):
            return None
        return self._job(run, number)

    def start(self, run: Run) -> ClusterJob:
        """Submit a run, to start when those are done that it needs."""
        self._executor.update_parameters(name=run.name, **self._after(run))
        try:
            with no_room_ends(run.folder):
                run.folder.mkdir(parents=True, exist_ok=True)
                job = self._executor.submit(Training(run, self._environment))
        except (RuntimeError, subprocess.SubprocessError) as e:  # submitit's are among the first
            raise UserError(
                f"Slurm does not take the job of {run.name} ({reason(e)}): mend --job."
            ) from e
        try:
            write_whole(run.folder / _JOB, job.job_id)
        except UserError:  # no later call would know of it
            job.cancel(check=False)
            raise
        if self._queue is not None:  # until the next look
            self._queue[job.job_id] = "PD"
        return self._job(run, job.job_id)

    def leave(
        self, jobs: Iterable[ClusterJob], say: Callable[[str], None], patience: float
    ) -> None:
        """Say that they go on, and how to end them."""
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
        if needed:  # a job whose turn can never come is taken out of the queue
            given |= {"dependency": "afterok:" + ":".join(needed), "kill-on-invalid-dep": "yes"}
        return {"slurm_additional_parameters": {"requeue": True, **given}}

    def _is_queued(self, number: str) -> bool:
        if time.monotonic() >= self._next_look:
            command = ["squeue", "--me", "--noheader", "--format=%A %t"]
            answer = subprocess.run(command, capture_output=True, text=True)
            known = answer.returncode == 0  # else the controller is away
            lines = map(str.split, answer.stdout.splitlines())
            self._queue = dict(lines) if known else None
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        return self._queue is None or number in self._queue  # what is not known to be over goes on

    def _is_ending(self, number: str) -> bool:
        return self._queue is not None and self._queue.get(number) == "CG"


def _read(folder: Path) -> str | None:
    try:
        return (folder / _JOB).read_text()
    except OSError:
        return None

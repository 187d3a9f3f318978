"""Experiments of several trainings: each a process of its own, some waiting for others."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import IO, Any

import portalocker
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict

from dpk_det.config import PLAIN, load_config
from dpk_det.errors import UserError

from .signals import with_parent
from .train import parse_args, setup
from .trainer import RESULTS

# keys that hold a path, which may be spelled in several ways
_PATHS = ("DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS", "MODEL.BACKBONE_WEIGHTS")
_SECONDS_BETWEEN_NEWS = 30


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: unique in its experiment. config: its file. folder: its OUTPUT_DIR.
        opts: overrides of the config, ``(KEY, VALUE, ...)``.
        after: names of the runs that must be done before.
    """

    name: str
    config: str
    folder: Path
    opts: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The training command's arguments; a run that was interrupted resumes."""
        opts = [*self.opts, "OUTPUT_DIR", str(self.folder)]
        return ["--config-file", self.config, "--resume", *opts]

    @property
    def results(self) -> dict[str, Any] | None:
        """What the finished run left in results.json; None before that."""
        path = self.folder / RESULTS
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def figures(self) -> dict[str, float | None]:
        """What the finished run was evaluated to: "bbox/AP" and the like; None: not measurable."""
        return flatten_results_dict(self.results["results"])

    @property
    def log(self) -> Path:
        """Where the run's output goes."""
        return self.folder / "train.log"


# ------------------------------------------------------------------ training


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
    has_gpu = torch.cuda.is_available()
    if gpus and not has_gpu:
        raise UserError("--gpus is given but torch finds no GPU here: leave it out.")
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        for gpu in gpus:
            if gpu.isdecimal() and int(gpu) >= torch.cuda.device_count():
                raise UserError(
                    f"--gpus names GPU {gpu} but this machine has {torch.cuda.device_count()}, "
                    "counted from 0: name those."
                )
    if has_gpu and not gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if workers is None:
        workers = len(gpus) or min(2, os.cpu_count() or 1)
    slots = []
    for i in range(workers):
        slot = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if gpus:
            slot["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        slots.append(slot)
    return slots


@dataclass(frozen=True)
class _Job:
    run: Run
    slot: Mapping[str, str]
    process: subprocess.Popen
    since: float


def train_all(
    runs: Sequence[Run],
    slots: Sequence[Mapping[str, str]],
    report: Callable[[str], None] = print,
    ended: Callable[[Run], None] = lambda run: None,
) -> None:
    """Train what is not trained yet, one training a slot at a time, and wait for the end.

    A run that fails does not stop the others, but for those that come after it. When this ends by
    an exception, such as an interrupt, the trainings are ended too.

    Args:
        runs: in the order in which to start them, as far as ``after`` allows.
        slots: what each worker adds to the environment of its trainings.
        report: gets a line at every start and end and, every half minute, how far each has come.
        ended: called with a run when it has ended, well or not.

    Raises:
        UserError: when runs failed, at the end of all, naming their logs; at once when a run was
            made earlier with another config or before a run that it needs.
    """
    waiting = _to_do(runs, report)
    free = list(slots)
    active: dict[str, _Job] = {}
    failed: list[Run] = []
    lost: list[Run] = []
    durations: list[float] = []
    next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS

    def outlook() -> str:
        done = len(runs) - len(waiting) - len(active) - len(failed) - len(lost)
        elapsed = [time.monotonic() - job.since for job in active.values()]
        left = _seconds_left(durations, len(waiting), elapsed, len(slots))
        eta = f", about {math.ceil(left / 60)} min to go" if left else ""
        return f"{done} of {len(runs)} done{eta}"

    try:
        while waiting or active:
            for job in [job for job in active.values() if job.process.poll() is not None]:
                run = job.run
                del active[run.name]
                free.append(job.slot)
                if run.results is None:
                    failed.append(run)
                    report(f"{run.name}: failed, log in {run.log}")
                else:
                    durations.append(time.monotonic() - job.since)
                    report(f"{run.name}: done, {_describe(run)} ({outlook()})")
                ended(run)
            gone = {run.name for run in (*failed, *lost)}
            for run in [run for run in waiting if gone & set(run.after)]:
                waiting.remove(run)
                lost.append(run)
            undone = {run.name for run in (*failed, *lost, *waiting)} | set(active)
            for run in [run for run in waiting if not undone & set(run.after)][: len(free)]:
                waiting.remove(run)
                slot = free.pop(0)
                active[run.name] = _Job(run, slot, _start(run, slot), time.monotonic())
                report(f"{run.name}: started, log in {run.log}")
            if time.monotonic() > next_news:
                report("; ".join([outlook(), *(_progress(job.run) for job in active.values())]))
                next_news = time.monotonic() + _SECONDS_BETWEEN_NEWS
            time.sleep(0.2)
    finally:
        _end([job.process for job in active.values()])
    if failed:
        raise _failure(failed, lost)


def _to_do(runs: Sequence[Run], report: Callable[[str], None]) -> list[Run]:
    by_name = {run.name: run for run in runs}
    waiting = []
    for run in runs:
        check_config(run)
        _check_age(run, [by_name[name] for name in run.after])
        if run.results is not None:
            report(f"{run.name}: done before")
            continue
        waiting.append(run)
        if run.folder.is_dir():
            _lock(run).close()
    return waiting


def _start(run: Run, slot: Mapping[str, str]) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:  # the training itself takes the folder's lock
        return subprocess.Popen(
            [sys.executable, "-m", "dpk_det.engine.train", *run.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | slot | with_parent(),
        )


def _lock(run: Run) -> IO[str]:
    lock = (run.folder / ".lock").open("w")
    try:
        portalocker.lock(lock, portalocker.LOCK_EX | portalocker.LOCK_NB)
    except portalocker.LockException as e:
        lock.close()
        raise UserError(
            f"{run.folder} is being trained by another process: wait for its end, or end it."
        ) from e
    return lock


def _end(processes: Collection[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # stuck, perhaps in a driver
            process.kill()
            process.wait()


def _failure(failed: Sequence[Run], lost: Sequence[Run]) -> UserError:
    what = f"The training {failed[0].name}" if len(failed) == 1 else f"{len(failed)} trainings"
    also = f", so {', '.join(run.name for run in lost)} could not be trained" if lost else ""
    logs = ", ".join(str(run.log) for run in failed)
    return UserError(
        f"{what} failed{also}: the output is in {logs}; mend what it says and call again."
    )


# ------------------------------------------------------------------ checks


def check_config(run: Run, any_machine: bool = False) -> None:
    """Check that what lies in a run's folder was made with the config that the run has now.

    A key that is newer than the folder may have its default. How a path is spelled, where the
    folder itself lies, and the keys of distillation methods that the run does not use make no
    difference.

    Args:
        run: perhaps finished, perhaps not even begun.
        any_machine: a GPU there and none here makes no difference either, and the datasets need
            not be here.

    Raises:
        UserError: when the folder was made with another config, naming a key that differs.
    """
    made_with = run.folder / "config.yaml"
    if not made_with.is_file():
        return
    ignored = ["OUTPUT_DIR"]
    if any_machine:
        cfg = load_config(run.config, run.opts)
        ignored += ["MODEL.DEVICE", "SOLVER.AMP.ENABLED"]
    else:
        cfg = setup(parse_args(run.arguments))
    had, has, default = map(
        flatten, (yaml.safe_load(made_with.read_text()), _content(cfg), _content(load_config("")))
    )
    for key in _PATHS:
        had[key], has[key] = (os.path.abspath(x.get(key) or "") for x in (had, has))
    nothing = object()
    for key in {**had, **has}:
        before = had.get(key, default.get(key, nothing))
        if key not in ignored and _matters(key, cfg) and before != has.get(key, nothing):
            raise UserError(
                f"{run.folder} was made with another configuration than {run.name} has now ({key} "
                "differs): remove or rename that folder, or give another one."
            )


def _matters(key: str, cfg: CfgNode) -> bool:
    top, _, rest = key.partition(".")
    node, _, argument = rest.partition(".")
    if top != "DISTILL" or not argument or node == "TEACHER":
        return True
    return cfg.MODEL.META_ARCHITECTURE in PLAIN and node.lower() in cfg.DISTILL.METHODS


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings, such as a config, as one of dotted keys."""
    flat = {}
    for key, value in node.items():
        below = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return flat


def _content(cfg: CfgNode) -> dict[str, Any]:
    return yaml.safe_load(cfg.dump())  # as it comes back from a file: tuples are lists


def _check_age(run: Run, needed: Iterable[Run]) -> None:
    # an unfinished one must not go on under another teacher than it began with
    trace = run.folder / (RESULTS if run.results is not None else "config.yaml")
    if not trace.is_file():
        return
    made = trace.stat().st_mtime
    for before in needed:
        if before.results is None or made < (before.folder / RESULTS).stat().st_mtime:
            raise UserError(
                f"{run.folder} was made before the {before.name} it needs: remove or rename it."
            )


# ------------------------------------------------------------------ how far they are


def _seconds_left(
    durations: Sequence[float], waiting: int, elapsed: Sequence[float], workers: int
) -> float | None:
    # as if each took as long as those that were seen to end did on average
    if not durations:
        return None
    each = mean(durations)
    return (waiting * each + sum(max(each - seconds, 0) for seconds in elapsed)) / workers


def _describe(run: Run) -> str:
    figures = {k: v for k, v in run.figures.items() if v is not None}
    if not figures:
        return "nothing measured"
    shown = [key for key in figures if key.endswith("/AP")] or list(figures)[:1]
    return ", ".join(f"{key.replace('/', ' ')} {figures[key]:.1f}" for key in shown)


def _progress(run: Run) -> str:
    metrics = read_metrics(run.folder)
    if not metrics:
        return f"{run.name}: starting"
    last = metrics[-1]
    eta = f", {last['eta_seconds'] / 60:.0f} min to go" if "eta_seconds" in last else ""
    loss = f", loss {last['total_loss']:.2f}" if "total_loss" in last else ""
    return f"{run.name}: step {last['iteration'] + 1}{loss}{eta}"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.json in order of iteration.

    Where a run was resumed, the later line of an iteration counts.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return []
    lines: dict[int, dict[str, float]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # still being written
            continue
        lines.setdefault(line["iteration"], {}).update(line)
    return [lines[i] for i in sorted(lines)]

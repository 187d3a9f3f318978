"""Experiments of several trainings: each a process of its own, some waiting for others."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpk_det.errors import UserError

from .train import parse_args, setup
from .trainer import RESULTS


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
    def log(self) -> Path:
        """Where the run's output goes."""
        return self.folder / "train.log"


def train_all(
    runs: Sequence[Run], workers: int, threads: int, report: Callable[[str], None] = print
) -> None:
    """Train what is not trained yet, at most so many at a time, and wait for the end.

    Args:
        runs: in the order in which to start them, as far as ``after`` allows.
        workers: how many at a time. threads: CPU threads that each may use.
        report: gets a line at every start and end and, every half minute, how far each has come.

    Raises:
        UserError: when a run failed, naming its log, or was made earlier with another config or
            before a run that it needs.
    """
    waiting = []
    by_name = {run.name: run for run in runs}
    for run in runs:
        _check_config(run)
        _check_age(run, [by_name[name] for name in run.after])
        if run.results is None:
            waiting.append(run)
        else:
            report(f"{run.name}: done before")
    active: dict[str, tuple[Run, subprocess.Popen]] = {}
    next_news = time.monotonic() + 30
    try:
        while waiting or active:
            for name, (run, process) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[name]
                if process.returncode or run.results is None:
                    raise UserError(f"The run {name} failed: its output is in {run.log}.")
                report(f"{name}: done, {_describe(run)}")
            undone = {run.name for run in waiting} | set(active)
            for run in [run for run in waiting if not undone & set(run.after)]:
                if len(active) < workers:
                    waiting.remove(run)
                    active[run.name] = (run, _start(run, threads))
                    report(f"{run.name}: started, log in {run.log}")
            if time.monotonic() > next_news:
                report(", ".join(_progress(run) for run, _ in active.values()))
                next_news += 30
            time.sleep(0.2)
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.wait()


def _check_config(run: Run) -> None:
    made_with = run.folder / "config.yaml"
    if made_with.is_file() and made_with.read_text() != setup(parse_args(run.arguments)).dump():
        raise UserError(
            f"{run.folder} was made with another configuration than {run.name} has now: remove or "
            "rename that folder, or give another one."
        )


def _check_age(run: Run, needed: Sequence[Run]) -> None:
    if run.results is None:
        return
    made = (run.folder / RESULTS).stat().st_mtime
    for before in needed:
        if before.results is None or made < (before.folder / RESULTS).stat().st_mtime:
            raise UserError(
                f"{run.folder} was made before the {before.name} it needs: remove or rename it."
            )


def _start(run: Run, threads: int) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with run.log.open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dpk_det.engine.train", *run.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
        )


def _describe(run: Run) -> str:
    return ", ".join(
        f"{task} AP {metrics['AP']:.1f}" for task, metrics in run.results["results"].items()
    )


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

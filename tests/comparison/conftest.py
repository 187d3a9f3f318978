"""Finished trainings that nobody trained, and a stand-in for the training command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpk_det.comparison.run import Run

MACHINE = {
    "platform": "Linux",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "python": "3.11",
    "torch": "2.14",
    "detectron2": "0.6",
}


RESULTS = {
    "iterations": 3,
    "parameters": 1234567,
    "distiller_parameters": 0,
    "seconds_per_step": 0.1,
    "peak_memory_mb": 200.0,
    "machine": MACHINE,
    "results": {"bbox": {"AP": 12.34, "AP50": 32.34}},
}
# What stands in for dpk_det/engine/train.py. OUTPUT_DIR comes last on its command line.
PROGRAM = f"""
import json, os, sys, time
folder = sys.argv[-1]
name = os.path.basename(folder)

def note(*what):
    with open("diary", "a") as diary:
        print(name, *what, file=diary)

def until(event):
    end = time.monotonic() + 60
    while event not in open("diary").read() and time.monotonic() < end:
        time.sleep(0.02)

def finish(**other):
    results = {RESULTS!r} | other
    open(folder + "/model_final.pth", "w").close()
    with open(folder + "/results.json", "w") as file:
        json.dump(results, file)

def train():  # what the real command does
    os.chdir("/")
    os.execv(sys.executable, [sys.executable, "-m", "dpk_det.engine.train", *sys.argv[1:]])

note("starts")
exec(open("scripts/" + name).read() if os.path.exists("scripts/" + name) else "finish()")
note("ends")
"""


class StandIn:
    """Programs of a line or two in place of the training command: a training takes seconds.

    Processes, folders, logs and signals are real. ``python -m`` looks into the working directory
    first, and finds the stand-in there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir()
        package = folder / "dpk_det" / "engine"
        package.mkdir(parents=True)
        for name in ("dpk_det/__init__.py", "dpk_det/engine/__init__.py"):
            (folder / name).touch()
        (package / "train.py").write_text(PROGRAM)

    def script(self, name: str, script: str) -> None:
        """What the run of a name does, instead of leaving results at once.

        It may call ``note(text)``, ``finish(results=...)`` and ``train()``, the real command.
        """
        (self.folder / "scripts" / name).write_text(script)

    def run(self, name: str, script: str = "finish()", after: tuple[str, ...] = ()) -> Run:
        """A run that does this."""
        self.script(name, script)
        return Run(name, "none.yaml", self.folder / name, after=after)

    def events(self) -> list[str]:
        """``NAME starts``, ``NAME ends`` and ``NAME`` with what a script has noted, in order."""
        diary = self.folder / "diary"
        return diary.read_text().splitlines() if diary.exists() else []


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> StandIn:
    """The stand-in of the training command, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return StandIn(tmp_path)


@pytest.fixture
def finish() -> Callable[..., None]:
    """``finish(run, ap, ...)`` leaves what a training leaves at its end."""

    def finish(run: Any, ap: float | None, **other: Any) -> None:
        run.folder.mkdir(parents=True)
        results = RESULTS | {"results": {"bbox": {"AP": ap, "AP50": ap and ap + 20}}}
        (run.folder / "model_final.pth").touch()
        (run.folder / "results.json").write_text(json.dumps(results | other))

    return finish

"""Starts commands with faults (see nursery.py), and judges what they leave and how they end."""

import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from dpk_det.errors import MISTAKE, STOPPED

ROOT = Path(__file__).parents[2]
NURSERY = Path(__file__).with_name("nursery.py")
MAX_ITER = 6
# name -> config of the fixture `tiny` or `tiny_images`, checkpoint period, data loader's workers,
# evaluation period
EXPERIMENTS = {
    "plain": ("plain", 2, 0, 0),
    "dpk": ("dpk", 4, 0, 2),
    "plain-workers": ("plain", 4, 1, 0),
    "dpk-workers": ("dpk", 2, 1, 0),
    "images": ("dpk", 2, 1, 0),
}
# what a run may have of its own: times, its folder, when it was resumed
OWN = {"time", "data_time", "rank_data_time", "eta_seconds", "config", "resumed"}
PATIENCE = 400
"""Seconds that a command may take; then it hangs."""


class Fault(AssertionError):
    """What a command did wrong; the words before the colon name its kind."""


class Nursery:
    """The server that forks commands."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, str(NURSERY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The server's answer."""
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(
        self,
        folder: Path,
        argv: Sequence[Any],
        faults: Sequence[Mapping[str, Any]] = (),
        script: str = "tools/train_net.py",
    ) -> "Command":
        """Fork a command.

        Args:
            folder: whose files count; output and trace go beside it. argv: its arguments.
            faults: see nursery.py. script: below the root.
        """
        plan = make_plan(folder, argv, faults, script)
        pid = self.ask(plan)
        return Command(plan, pid, lambda: self.ask({"poll": pid}))

    def close(self) -> None:
        """End the server and all that it has started."""
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


_numbers = iter(range(10**6))


def make_plan(folder: Path, argv: Sequence[Any], faults: Sequence[Any], script: str) -> dict:
    """A plan of nursery.py."""
    stem = f"{folder}.{next(_numbers)}"
    return {
        "script": script,
        "argv": [str(arg) for arg in argv],
        "folder": str(folder),
        "faults": list(faults),
        "output": f"{stem}.out",
        "trace": f"{stem}.trace",
    }


def environment() -> dict[str, str]:
    """Of a command in a process of its own: this copy of the project, the CPU, a thread."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def start_alone(
    folder: Path,
    argv: Sequence[Any],
    faults: Sequence[Mapping[str, Any]] = (),
    script: str = "tools/train_net.py",
    launcher: Sequence[str] = (),
) -> "Command":
    """As :meth:`Nursery.start`, in a new interpreter; behind a launcher such as torchrun."""
    plan = make_plan(folder, argv, faults, script)
    path = Path(plan["output"]).with_suffix(".plan")
    path.write_text(json.dumps(plan))
    with open(plan["output"], "w") as output:
        process = subprocess.Popen(
            [sys.executable, *launcher, str(NURSERY), str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    return Command(plan, process.pid, process.poll)


@dataclass
class Command:
    """A command that was started."""

    plan: dict[str, Any]
    pid: int
    ask: Callable[[], int | None]
    status: int | None = None

    def poll(self) -> int | None:
        """The exit status, None before the end; of one that a signal killed, -1 times that."""
        if self.status is None:
            self.status = self.ask()
        return self.status

    @property
    def folder(self) -> Path:
        """Its OUTPUT_DIR."""
        return Path(self.plan["folder"])

    @property
    def said(self) -> str:
        """What it printed."""
        path = Path(self.plan["output"])
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def trace(self) -> list[str]:
        """Its events, see nursery.py."""
        path = Path(self.plan["trace"])
        return path.read_text().splitlines() if path.exists() else []

    @property
    def steps(self) -> list[int]:
        """The steps that it trained, from 0."""
        return [int(line.split()[1]) for line in self.trace if line.startswith("step ")]

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the end, and give :meth:`poll`.

        Raises:
            Fault: when it hangs. It is killed then.
        """
        for _ in moments(patience):
            status = self.poll()
            if status is not None:
                return status
        where = Path(f"/proc/{self.pid}/wchan")
        where = where.read_text() if where.exists() else "?"
        self.kill()
        raise Fault(f"hang: no end after {patience} s ({where}): {self.said[-500:]}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def succeed(self) -> "Command":
        """Wait for it; it has to end well."""
        status = self.wait()
        if status:
            kind = "traceback" if "Traceback" in self.said else f"status {status}"
            raise Fault(f"{kind}: {last_lines(self.said)}")
        return self

    def die(self) -> "Command":
        """Wait for it; it has to be killed, as was asked for."""
        status = self.wait()
        assert status in (-signal.SIGKILL, -signal.SIGXFSZ), (status, last_lines(self.said))
        return self

    def end(self, status: int, *words: str, says: str = "error: ") -> str:
        """Wait for it; it has to end with a status, and with one line and no traceback.

        Args:
            status: of errors.py. words: that the line must have, as regular expressions.
            says: begins the line.

        Returns:
            The line.
        """
        got = self.wait()
        if "Traceback" in self.said or "Logging error" in self.said:
            raise Fault(f"traceback: status {got}: {last_lines(self.said)}")
        if got != status:
            raise Fault(f"status {got} for {status}: {last_lines(self.said)}")
        lines = [line for line in self.said.splitlines() if says in line]
        if len(lines) != 1:
            raise Fault(f"{len(lines)} sentences for one: {last_lines(self.said)}")
        for word in words:
            if not re.search(word, lines[0]):
                raise Fault(f"no word of {word}: {lines[0]}")
        return lines[0]

    def stop(self) -> str:
        """Wait for it; it has to end as a training that a signal stopped."""
        return self.end(STOPPED, says="--resume")

    def refuse(self, *words: str) -> str:
        """Wait for it; it has to end as after a user's mistake."""
        return self.end(MISTAKE, *words)

    def mentions(self, name: str) -> None:
        """What it says of a file, beyond that it reads or writes it."""
        routine = re.compile(r"Saving checkpoint|Loading from|Loading \S+ from")
        if not any(name in x and not routine.search(x) for x in self.said.splitlines()):
            raise Fault(f"silent: no line of {name}")

    def left_behind(self, patience: float = 20) -> None:
        """Nothing that it started may be alive after some seconds."""
        for _ in moments(patience):
            alive = [pid for pid in processes() if self._owns(pid)]
            if not alive:
                return
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
        raise Fault(f"left behind: {len(alive)} processes after {patience} s")

    def _owns(self, pid: int) -> bool:
        proc = Path(f"/proc/{pid}")
        try:
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
            words = (proc / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
        state, session = fields[0], int(fields[3])
        mine = session == self.pid or str(self.folder) in words or f"{self.folder}." in words
        return mine and state != "Z"


def processes() -> list[int]:
    """All of the machine."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def moments(patience: float) -> Iterator[None]:
    """Look again and again for some seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        yield
        time.sleep(0.01)


def await_file(path: Path, command: Command) -> None:
    """Wait until a file is there, while a command runs."""
    for _ in moments(PATIENCE):
        if path.exists():
            return
        if command.poll() is not None:
            break
    raise Fault(f"no {path.name}: {last_lines(command.said)}")


def last_lines(text: str) -> str:
    """The end of what was said, short."""
    return " / ".join(text.strip().splitlines()[-4:])[-600:]


class Experiment:
    """A training that faults are done to.

    Args:
        argv: of the training command, but for OUTPUT_DIR. folder: for what tests share.

    Attributes:
        seconds: that a training without faults took. files: how many times it opened, renamed or
            removed a file. Both are known once there is a ``reference``.
    """

    def __init__(self, nursery: Nursery, argv: Sequence[Any], folder: Path) -> None:
        self.nursery, self.argv, self.folder = nursery, list(argv), folder
        self.seconds, self.files = 0.0, 0
        self._killed: dict[int, Path] = {}

    @functools.cached_property
    def reference(self) -> Path:
        """The folder of a training without faults."""
        since = time.monotonic()
        command = self.train(self.folder / "reference").succeed()
        self.seconds = time.monotonic() - since
        self.files = sum(line.startswith("file ") for line in command.trace)
        return command.folder

    def train(
        self, folder: Path, *opts: Any, faults: Sequence[dict[str, Any]] = (), resume: bool = False
    ) -> Command:
        """Start the training, with overrides of the config."""
        argv = ["--resume"] * resume + [*self.argv, "OUTPUT_DIR", folder, *opts]
        return self.nursery.start(folder, argv, faults)

    def resume(self, folder: Path, *opts: Any, faults: Sequence[dict[str, Any]] = ()) -> Command:
        """Start it with --resume."""
        return self.train(folder, *opts, faults=faults, resume=True)

    def killed(self, folder: Path, step: int) -> None:
        """Make a folder as a training leaves it that was killed within a step, counted from 1."""
        if step not in self._killed:
            path = self.folder / f"killed-{step}"
            self.train(path, faults=[{"at": "step", "n": step, "do": "SIGKILL"}]).die()
            self._killed[step] = path
        shutil.copytree(self._killed[step], folder)


# ------------------------------------------------------------------ what a folder holds


def check_whole(folder: Path) -> None:
    """Every file under its final name must be whole, whatever happened.

    Raises:
        Fault: when one is not.
    """
    for path in sorted(folder.rglob("*")):
        name = path.name
        if not path.is_file() or name.startswith(".") or name == "results.partial":
            continue
        try:
            if path.suffix == ".pth":
                torch.load(path, map_location="cpu", weights_only=False)
            elif name == "last_checkpoint":
                named = folder / path.read_text().strip()
                assert named.is_file(), f"names {named.name}, which is absent"
            elif name == "config.yaml":
                assert "OUTPUT_DIR" in yaml.safe_load(path.read_text()), "is cut"
            elif name == "metrics.json":
                for line in path.read_text().splitlines():
                    json.loads(line)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except Exception as e:
            reason = str(e).partition(". ")[0]
            raise Fault(f"half file: {path.relative_to(folder)} ({reason})") from e


def check_equal(folder: Path, reference: Path, commands: Sequence[Command] = ()) -> None:
    """A run's end must be that of a run without faults, bit for bit.

    Args:
        folder: of the run. reference: that of the other. commands: of the run, whose losses per
            step are compared as well.

    Raises:
        Fault: when it is not, naming what differs.
    """
    check_whole(folder)
    for name in ("model_final.pth", "results.json"):
        if not (folder / name).is_file():
            raise Fault(f"no {name}")
    expected = losses(reference)
    for command in commands:
        for line in command.trace:
            kind, step, *rest = line.split(" ")
            if kind == "loss" and rest not in expected.get(int(step), [rest]):
                raise Fault(f"another result: {rest[0]} of step {step}")
    ours, theirs = (
        {
            "results.json": json.loads((path / "results.json").read_text())["results"],
            "model_final.pth": load(path / "model_final.pth"),
            "metrics.json": metrics(path),
        }
        for path in (folder, reference)
    )
    different = list(differences(ours, theirs))
    if different:
        raise Fault(f"another result: {len(different)} values, {', '.join(different[:3])}")


def load(path: Path) -> dict[str, Any]:
    """A checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=False)


def losses(reference: Path) -> dict[int, list[list[str]]]:
    """Step to name and value, of the only command of a run."""
    (trace,) = reference.parent.glob(f"{reference.name}.*.trace")
    found: dict[int, list[list[str]]] = {}
    for line in trace.read_text().splitlines():
        kind, step, *rest = line.split(" ")
        if kind == "loss":
            found.setdefault(int(step), []).append(rest)
    return found


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Iteration to the line of metrics.json; the later counts."""
    lines: dict[int, dict[str, float]] = {}
    for text in (folder / "metrics.json").read_text().splitlines():
        line = json.loads(text)
        lines.setdefault(line["iteration"], {}).update(line)
    return lines


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """Where two nested values differ in any bit, but for what each may have of its own."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in {**ours, **theirs}:
            if key in OWN:
                continue
            if key in ours and key in theirs:
                yield from differences(ours[key], theirs[key], f"{where}/{key}")
            else:
                yield f"{where}/{key}"
    elif isinstance(theirs, list | tuple) and isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            yield where
        for i, pair in enumerate(zip(ours, theirs, strict=False)):
            yield from differences(*pair, f"{where}/{i}")
    elif isinstance(theirs, torch.Tensor) and isinstance(ours, torch.Tensor):
        bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (ours, theirs)]
        if ours.shape != theirs.shape or not torch.equal(*bits):
            yield where
    elif hasattr(theirs, "tobytes") and hasattr(ours, "tobytes"):  # numpy's
        if ours.tobytes() != theirs.tobytes():
            yield where
    elif ours != theirs and not (is_nan(ours) and is_nan(theirs)):
        yield where


def is_nan(value: Any) -> bool:
    """Of numbers alone."""
    return isinstance(value, float) and math.isnan(value)

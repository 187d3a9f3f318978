"""Runs a command of the project with faults at moments that are told: killed, signalled, disk full.

As a program without arguments it is a server. It imports everything once and then forks a process
per command, which so starts in a tenth of a second and not in five. Each line on its standard
input is a request in JSON and is answered by a line: a plan (see :func:`carry_out`) by the
process's id, ``{"poll": id}`` by the exit status as Popen gives it, or null. When its input ends,
it kills what it has started. With the path of a plan as its argument it is that command's process
itself; the arguments after it are added to the command's.

The moments do not depend on how the project is written: the files that Python opens for writing,
renames and removes come from the interpreter's audit events, steps are counted by their backward
passes.
"""

import contextlib
import ctypes
import json
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


def carry_out(plan: dict[str, Any]) -> None:
    """Run a command in this process.

    Args:
        plan: ``script``: path below the root. ``argv``: its arguments. ``folder``: whose files
            count. ``trace``: a file that gets a line per event: "file ...", "step STEP" (trained,
            from 0) and "loss STEP NAME VALUE". ``faults``: a list of ``{"at": moment, "n": which of
            them from 1, "do": what}``, and perhaps ``rank``, the only one that it is for.

    Moments are "now" (before the command begins), "file" (a file in the folder is about to be
    opened for writing, renamed or removed), "config" (config.yaml is), "step" (a backward pass) and
    "evaluation" (one begins). What to do: names of signals for this process, divided by spaces, or
    for its group, after the word "group", "pause" for a while between them; "cut BYTES": a file
    that grows beyond that kills the process, in the middle of a write; "full BYTES": such a write
    fails, as it does on a full disk; "hold PATH": make that file, and wait until it is gone;
    "spoil": the gradients of that step are no numbers.
    """
    watch(plan)
    script = str(ROOT / plan["script"])
    sys.argv = [script, *plan["argv"]]
    runpy.run_path(script, run_name="__main__")


def watch(plan: dict[str, Any]) -> None:
    """Count the moments of this process and let the plan's faults happen."""
    from detectron2.engine import defaults
    from detectron2.evaluation import evaluator
    from detectron2.utils.events import EventStorage, get_event_storage
    from torch import Tensor, nn

    rank = int(os.environ.get("RANK", 0))
    faults = {
        (fault["at"], fault.get("n", 1)): fault["do"]
        for fault in plan.get("faults", ())
        if fault.get("rank", rank) == rank
    }
    counts: dict[str, int] = {}
    owner, folder = os.getpid(), f"{plan['folder']}/"
    trace = os.open(plan.get("trace", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reach(moment: str) -> str | None:
        counts[moment] = counts.get(moment, 0) + 1
        fault = faults.get((moment, counts[moment]))
        if fault and os.getpid() == owner:  # not in a data loader's worker
            inflict(fault)
        return fault

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove") or os.getpid() != owner:
            return
        path = args[0]
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITING):
            return
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(folder):
            return
        name = os.fspath(path).removeprefix(folder)
        os.write(trace, f"file {event} {name}\n".encode())
        if name.endswith("config.yaml"):
            reach("config")
        reach("file")

    def inference_context(model: nn.Module) -> contextlib.AbstractContextManager:
        reach("evaluation")
        return evaluate(model)

    def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
        os.write(trace, f"step {get_event_storage().iter}\n".encode())
        factor = float("inf") if reach("step") == "spoil" else 1
        go_back(self * factor, *args, **kwargs)

    def put_scalar(self: EventStorage, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if "loss" in name:
            os.write(trace, f"loss {self.iter} {name} {float(value).hex()}\n".encode())
        put(self, name, value, *args, **kwargs)

    defaults.collect_env_info = lambda: ""  # takes seconds
    put, EventStorage.put_scalar = EventStorage.put_scalar, put_scalar
    go_back, Tensor.backward = Tensor.backward, backward
    evaluate, evaluator.inference_context = evaluator.inference_context, inference_context
    sys.addaudithook(hear)
    reach("now")


def inflict(fault: str) -> None:
    """Do to this process what the plan says."""
    what, _, rest = fault.partition(" ")
    if what in ("cut", "full"):
        action = signal.SIG_DFL if what == "cut" else signal.SIG_IGN
        signal.signal(signal.SIGXFSZ, action)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(rest), resource.RLIM_INFINITY))
    elif what == "hold":
        held = Path(rest)
        held.touch()
        while held.exists():
            time.sleep(0.01)
    elif what != "spoil":
        send, names = (os.killpg, rest) if what == "group" else (os.kill, fault)
        for name in names.split():
            if name == "pause":
                time.sleep(1.5)
                continue
            send(os.getpid() if send is os.kill else os.getpgrp(), getattr(signal, name))


def serve() -> dict[str, Any]:
    """Answer requests.

    Returns:
        In a forked process, the plan that it has to carry out. The server itself returns never.
    """
    import dpk_det.comparison.command
    import dpk_det.deploy.export
    import dpk_det.deploy.predict  # noqa: F401

    alive: set[int] = set()

    def poll(pid: int) -> int | None:
        done, status = os.waitpid(pid, os.WNOHANG)
        alive.discard(done)
        return os.waitstatus_to_exitcode(status) if done else None

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = poll(request["poll"])
        elif answer := os.fork():
            alive.add(answer)
        else:
            # a session of its own, so that all that descends from it can be found
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with the server
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            return request
        print(json.dumps(answer), flush=True)
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if len(sys.argv) > 1:
        plan = json.loads(Path(sys.argv[1]).read_text())
        plan["argv"] += sys.argv[2:]
    else:
        plan = serve()
    carry_out(plan)

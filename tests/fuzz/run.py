#!/usr/bin/env python
"""Give the commands odd inputs, and see that each is refused in one sentence or rightly accepted.

python tests/fuzz/run.py                     # all, as `make fuzz`
python tests/fuzz/run.py --kind suites       # one kind
python tests/fuzz/run.py --only "DPK.WEIGHT" # those whose name holds that
python tests/fuzz/run.py --list

The cases are the same in every run. What was accepted is proven: a training takes a step and
evaluates, a file of predictions is opened. Prints a table by kind, and exits with 1 when a case
ends in a traceback, in a hang, is accepted though wrong, or refused though right.
"""

import argparse
import collections
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")

import cv2  # noqa: E402
from all_cases import all_cases  # noqa: E402
from cases import Case  # noqa: E402
from judge import GOOD, HANG, OUTCOMES, TRACEBACK, judge, silence  # noqa: E402
from tabulate import tabulate  # noqa: E402
from tqdm import tqdm  # noqa: E402
from world import World  # noqa: E402

SECONDS = 90
"""A case that takes longer hangs; most take one or two."""
MEMORY = 16 * 2**30
"""Bytes of addresses of a worker: what asks for more fails there, and not the machine."""


def run_all(cases: Sequence[Case], workers: int, seconds: float = SECONDS) -> list[tuple[str, str]]:
    """The outcome of each case, tried in processes that are replaced when they hang or die.

    A case hangs if it is not done in time twice: a busy machine stands still now and then.
    """
    context = multiprocessing.get_context("fork")
    outcomes: list[tuple[str, str] | None] = [None] * len(cases)
    todo = collections.deque(range(len(cases)))
    busy: dict[Connection, tuple[multiprocessing.Process, int, float]] = {}
    idle: list[tuple[Connection, multiprocessing.Process]] = []
    late: set[int] = set()

    def start() -> tuple[Connection, multiprocessing.Process]:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, cases, seconds))
        process.start()
        there.close()
        return here, process

    def end(process: multiprocessing.Process) -> None:
        with_children = process.pid
        try:
            os.killpg(with_children, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()

    progress = tqdm(total=len(cases), unit="case", disable=None)
    try:
        while todo or busy:
            while todo and len(busy) < workers:
                connection, process = idle.pop() if idle else start()
                number = todo.popleft()
                connection.send(number)
                busy[connection] = process, number, time.monotonic() + seconds
            for connection in wait(list(busy), timeout=1):
                process, number, _ = busy.pop(connection)
                try:
                    outcomes[number] = connection.recv()
                    idle.append((connection, process))
                except EOFError:
                    end(process)
                    outcomes[number] = TRACEBACK, f"the process died ({process.exitcode})"
            for connection, (process, number, until) in list(busy.items()):
                if time.monotonic() > until and not connection.poll():
                    del busy[connection]
                    end(process)
                    if number in late:
                        outcomes[number] = HANG, f"not done after {seconds} s: {_place(process)}"
                    else:
                        late.add(number)
                        todo.append(number)
            progress.update(len(cases) - outcomes.count(None) - progress.n)
    finally:
        progress.close()
        for connection, (process, *_) in [*busy.items(), *((c, (p,)) for c, p in idle)]:
            connection.close()
            end(process)
    return outcomes


def _work(connection: Connection, cases: Sequence[Case], seconds: float) -> None:
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cv2.setNumThreads(0)  # its threads do not survive a fork
    with silence(), open(_diary(os.getpid()), "w") as diary:
        while True:
            try:
                number = connection.recv()
            except EOFError:
                return
            diary.truncate(0)
            faulthandler.dump_traceback_later(0.5 * seconds, file=diary)
            outcome = judge(cases[number])
            faulthandler.cancel_dump_traceback_later()
            connection.send(outcome)


def _diary(pid: int) -> Path:
    return Path(tempfile.gettempdir()) / f"hanging-{pid}.txt"


def _place(process: multiprocessing.Process) -> str:
    """Where a process hung, innermost first."""
    lines = _diary(process.pid).read_text().replace("\0", "").splitlines()
    return " | ".join([x.strip() for x in lines if x.startswith("  File ")][:6])


def table(cases: Sequence[Case], outcomes: Sequence[tuple[str, str]]) -> str:
    """Markdown: a row for each kind, how many cases came to what."""
    counts: dict[str, collections.Counter[str]] = {}
    for case, (outcome, _) in zip(cases, outcomes, strict=True):
        counts.setdefault(case.kind, collections.Counter())[outcome] += 1
    counts["all"] = sum(counts.values(), collections.Counter())
    rows = [
        (kind, sum(found.values()), *(found[outcome] for outcome in OUTCOMES))
        for kind, found in counts.items()
    ]
    return tabulate(rows, ["kind", "cases", *OUTCOMES], tablefmt="github")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", help="only the cases of this kind")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--all", action="store_true", help="say what came of each, not of bad ones")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        tempfile.tempdir = folder
        with silence():
            world = World(Path(folder) / "world")
        cases = [
            case
            for case in all_cases(world)
            if args.only in case.name and args.kind in (None, case.kind)
        ]
        if args.list:
            for case in cases:
                print(f"{case.kind}: {case.name} ({case.expect})")
            return 0
        outcomes = run_all(cases, args.workers)
    for case, (outcome, said) in zip(cases, outcomes, strict=True):
        if args.all or outcome not in GOOD:
            print(f"{outcome.upper()}: {case.kind}: {case.name} ({case.expect})\n    {said}")
    print(f"\n{table(cases, outcomes)}")
    return int(any(outcome not in GOOD for outcome, _ in outcomes))


if __name__ == "__main__":
    sys.exit(main())

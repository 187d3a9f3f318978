"""Experiments that faults are done to, trained once without any, and the table of what came of it.

``make test`` runs a slice; with ``--whole``, as ``make faults`` has it, everything is run and a
table of passes and kinds of failure is printed at the end.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import EXPERIMENTS, MAX_ITER, Experiment, Nursery


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--whole"):
        items[:] = [item for item in items if not item.get_closest_marker("whole")]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--whole"):
        return
    rows: dict[str, Counter] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            name = re.sub(r".*::(test_)?|\[.*", "", report.nodeid).replace("_", " ")
            kind = outcome
            if outcome in ("failed", "error"):
                crash = getattr(report.longrepr, "reprcrash", None)
                kind = re.sub(r"^[\w.]+: |:.*", "", crash.message.splitlines()[0]) if crash else "?"
            rows.setdefault(name, Counter())[kind] += 1
    terminalreporter.section("what became of the faults")
    for name, kinds in sorted(rows.items()):
        passed, cases = kinds.pop("passed", 0), sum(kinds.values())
        others = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
        terminalreporter.write_line(f"| {name} | {passed} of {passed + cases} | {others} |")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """The server that forks commands."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def experiment(nursery, tiny, tmp_path_factory, request) -> Callable[[str], Experiment]:
    """``experiment(name)``: one of EXPERIMENTS."""
    made: dict[str, Experiment] = {}

    def make(name: str) -> Experiment:
        if name not in made:
            config, period, workers, evaluation = EXPERIMENTS[name]
            paths = request.getfixturevalue("tiny_images") if name == "images" else tiny
            argv = ["--config-file", getattr(paths, config), "SOLVER.MAX_ITER", MAX_ITER]
            argv += ["SOLVER.CHECKPOINT_PERIOD", period, "DATALOADER.NUM_WORKERS", workers]
            argv += ["TEST.EVAL_PERIOD", evaluation]
            made[name] = Experiment(nursery, argv, tmp_path_factory.mktemp(name))
        return made[name]

    return make

"""Comparisons that are stopped, killed, started twice, and that find damaged files."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from harness import (
    Command,
    Fault,
    await_file,
    check_equal,
    check_whole,
)

pytestmark = pytest.mark.whole
STEPS = 30
RUNS = ("big", "plain-seed1", "dpk-seed1")


@pytest.fixture(scope="session")
def suite(tiny, tmp_path_factory) -> Path:
    """Of a teacher, a plain and a distilling student."""
    common = {"SOLVER.MAX_ITER": STEPS, "SOLVER.CHECKPOINT_PERIOD": 4}
    content = {
        "title": "Tiny",
        "seeds": [1],
        "common": common,
        "teachers": {"big": {"config": str(tiny.teacher), "opts": {"SOLVER.MAX_ITER": 2}}},
        "baseline": "plain",
        "methods": {
            "plain": {"title": "plain", "config": str(tiny.plain)},
            "dpk": {"title": "DPK", "config": str(tiny.dpk), "teacher": "big"},
        },
    }
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def compared(nursery, suite) -> Path:
    """The folder of that comparison, without faults."""
    folder = suite.with_name("compared")
    start(nursery, suite, folder).succeed()
    return folder


def start(nursery, suite: Path, output: Path, *argv, runs: Path | None = None, faults=()):
    """Start the comparison."""
    argv = [suite, "--output", output, "--runs", runs or output / "runs", "--workers", 2, *argv]
    return nursery.start(output, argv, faults, "tools/compare.py")


def check_runs(runs: Path, compared: Path) -> None:
    """Its trainings are those of the one without faults."""
    for name in RUNS:
        check_run(runs / name, compared / "runs" / name)


def check_run(folder: Path, reference: Path) -> None:
    """As check_equal, of trainings that were not traced."""
    trace = reference.parent / f"{reference.name}.0.trace"
    trace.touch()
    check_equal(folder, reference)


def mid_training(runs: Path, command: Command) -> None:
    """Wait until the last student has saved."""
    await_file(runs / RUNS[-1] / "model_0000003.pth", command)


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_stops_a_comparison(nursery, suite, compared, tmp_path, sent):
    output = tmp_path / "out"
    first = start(nursery, suite, output)
    mid_training(output / "runs", first)
    if sent == "SIGINT":  # a terminal sends it to all
        os.killpg(first.pid, signal.SIGINT)
    else:
        first.kill(getattr(signal, sent))
    first.end(3, says="again")
    first.left_behind()
    for name in RUNS:
        check_whole(output / "runs" / name)
        log = (output / "runs" / name / "train.log").read_text()
        if "Traceback" in log:
            raise Fault(f"traceback: in the log of {name}")
    assert not (output / "runs" / RUNS[-1] / "results.json").exists(), "the signal came too late"
    start(nursery, suite, output).succeed()
    check_runs(output / "runs", compared)


def test_nothing_is_left_of_a_killed_comparison(nursery, suite, compared, tmp_path):
    output = tmp_path / "out"
    first = start(nursery, suite, output)
    mid_training(output / "runs", first)
    first.kill()
    first.die().left_behind()
    log = (output / "runs" / RUNS[-1] / "train.log").read_text()
    assert "Stopped by SIGTERM after step" in log  # it has saved
    start(nursery, suite, output).succeed()
    check_runs(output / "runs", compared)


def test_a_killed_comparison_is_called_again_at_once(nursery, suite, compared, tmp_path):
    output = tmp_path / "out"
    first = start(nursery, suite, output)
    mid_training(output / "runs", first)
    first.kill()
    first.die()
    start(nursery, suite, output).succeed()
    check_runs(output / "runs", compared)


@pytest.mark.parametrize("delay", [0, 8])
def test_two_comparisons_of_the_same_trainings(nursery, suite, compared, tmp_path, delay):
    runs = tmp_path / "runs"
    one = start(nursery, suite, tmp_path / "one", runs=runs)
    time.sleep(delay)
    other = start(nursery, suite, tmp_path / "other", runs=runs)
    for command in (one, other):
        command.succeed()
    check_runs(runs, compared)
    for name in RUNS:
        trained = (runs / name / "train.log").read_text().count("Starting training from iteration")
        if trained != 1:
            raise Fault(f"trained again: {name} {trained} times")
    for output in ("one", "other"):
        if not (tmp_path / output / "report.md").exists():
            raise Fault(f"no report: {output}")
    if not delay:  # else all may be done before the other one looks
        assert "another process" in one.said + other.said
    results = [json.loads((tmp_path / x / "results.json").read_text()) for x in ("one", "other")]
    assert results[0]["finished"] == results[0]["trainings"] == len(RUNS)
    assert results[0] == results[1] | {"command": results[0]["command"]}


def test_an_interrupt_of_one_comparison_leaves_the_other_alone(nursery, suite, compared, tmp_path):
    runs = tmp_path / "runs"
    # at once, because a comparison of such trainings may end before another one has begun
    one, other = (start(nursery, suite, tmp_path / name, runs=runs) for name in ("one", "other"))
    mid_training(runs, one)
    one.kill(signal.SIGINT)
    one.end(3, says="again")
    other.succeed()
    check_runs(runs, compared)


DAMAGE = {"empty": b"", "half": None, "binary": bytes(range(128, 255)), "NUL": bytes(99)}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["results.json", "metrics.json", "config.yaml"])
def test_a_damaged_file_of_a_training(nursery, suite, compared, name, kind):
    path = compared / "runs" / "plain-seed1" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if DAMAGE[kind] is None else DAMAGE[kind])
    try:
        command = start(nursery, suite, compared, "--report-only")
        if name == "results.json" or command.wait():
            command.refuse(name)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("bytes_", [500, 20_000])
def test_a_report_on_a_full_disk(nursery, suite, compared, tmp_path, bytes_):
    output = tmp_path / "out"
    shutil.copytree(compared, output, ignore=lambda *_: ["runs"])
    before = {path.name: path.read_bytes() for path in output.glob("*.*")}
    fault = {"at": "now", "do": f"full {bytes_}"}
    runs = compared / "runs"
    start(nursery, suite, output, "--report-only", runs=runs, faults=[fault]).refuse()
    for path in output.glob("*.*"):
        if path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), f"half file: {path.name}"
        elif path.name != "results.json" and not path.name.startswith("."):
            assert path.read_bytes() == before[path.name], path.name
    check_whole(output)

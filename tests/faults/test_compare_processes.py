"""Comparisons as they are called: two on one folder, ended by a signal, killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dpk_det.engine.lock import training_lock
from dpk_det.errors import BusyError

pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tiny, tmp_path):
    """``start(steps, output, runs)`` starts a comparison of a plain student with two seeds."""
    processes = []

    def start(steps, output, runs):
        content = {
            "seeds": [1, 2],
            "common": {"SOLVER.MAX_ITER": steps, "SOLVER.CHECKPOINT_PERIOD": 100_000},
            "baseline": "plain",
            "methods": {"plain": {"config": str(tiny.plain)}},
        }
        suite = tmp_path / "suite.yaml"
        suite.write_text(yaml.safe_dump(content))
        command = [sys.executable, "tools/compare.py", suite, "--output", output, "--runs", runs]
        process = subprocess.Popen(
            [*map(str, command), "--workers", "1"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(what, seconds=600):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_free(folder):
    try:
        with training_lock(folder):
            return True
    except BusyError:
        return False


def test_two_comparisons_of_one_folder_share_the_work(start, tmp_path):
    both = [start(2, tmp_path / name, tmp_path / "runs") for name in "ab"]
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for run in ("plain-seed1", "plain-seed2"):
        log = (tmp_path / "runs" / run / "log.txt").read_text()
        assert log.count("Starting training from iteration") == 1
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert a["finished"] == a["trainings"] == 2
    assert a == b | {"command": a["command"]}
    assert "another process" in said[0][0] + said[1][0]


def test_a_comparison_that_is_ended_or_killed_leaves_no_training_behind(start, tmp_path):
    runs, output = tmp_path / "runs", tmp_path / "out"
    process = start(100_000, output, runs)
    metrics = runs / "plain-seed1" / "metrics.json"
    wait_for(lambda: metrics.is_file() and metrics.stat().st_size)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 3
    assert errors == "Stopped by SIGTERM; call again to go on from there.\n"
    assert "Ending 1 training(s); they save first." in said
    checkpoint = (runs / "plain-seed1" / "last_checkpoint").read_text()
    assert (runs / "plain-seed1" / checkpoint).is_file() and is_free(runs / "plain-seed1")

    before = metrics.stat().st_size
    process = start(100_000, output, runs)
    wait_for(lambda: metrics.stat().st_size > before)
    process.kill()
    wait_for(lambda: is_free(runs / "plain-seed1"))  # it has saved, too
    assert (runs / "plain-seed1" / "last_checkpoint").read_text() > checkpoint

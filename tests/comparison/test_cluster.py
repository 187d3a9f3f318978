"""Comparisons whose trainings are jobs: of a real Slurm where it is installed, else of submitit."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from dpk_det.comparison import cluster as module
from dpk_det.comparison.cluster import Cluster
from dpk_det.comparison.command import run as compare
from dpk_det.comparison.run import Run, read_metrics
from dpk_det.comparison.runs import train_all
from dpk_det.errors import UserError

from . import slurm

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tiny, tmp_path):
    """A suite of six tiny trainings and a teacher; two of them take some seconds."""
    content = {
        "seeds": [1, 2],
        "common": {"SOLVER.MAX_ITER": 2, "SOLVER.CHECKPOINT_PERIOD": 1000},
        "teachers": {"big": {"config": str(tiny.teacher)}},
        "baseline": "plain",
        "methods": {
            "long": {"config": str(tiny.plain), "opts": {"SOLVER.MAX_ITER": 1000}},
            "plain": {"config": str(tiny.plain)},
            "dpk": {"config": str(tiny.dpk), "teacher": "big"},
        },
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def cluster():
    """A real Slurm."""
    if missing := slurm.absent():
        pytest.skip(f"Slurm is not installed: {missing[0]} is absent")
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        with slurm.Slurm(Path(folder)) as cluster:
            yield cluster


class Command:
    """tools/compare.py on a cluster, in a process of its own, and what it prints."""

    def __init__(self, cluster, suite, output):
        argv = [suite, "--output", output, "--cluster", "slurm", "--job", "gpus_per_node=0"]
        argv += ["cpus_per_task=1", "timeout_min=10"]
        self.said = ""
        self._process = subprocess.Popen(
            [sys.executable, "-u", "tools/compare.py", *map(str, argv)],
            cwd=ROOT,
            env=os.environ | cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, pattern):
        """Read until a line matches."""
        for line in self._process.stdout:
            self.said += line
            if re.search(pattern, line):
                return line
        raise AssertionError(f"it never said {pattern}:\n{self.said}")

    def interrupt(self):
        """A signal ends it."""
        self._process.terminate()

    def end(self):
        """Its exit status, once it has ended."""
        self.said += self._process.stdout.read()
        return self._process.wait(60)


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def number(folder):
    return (folder / "cluster_job").read_text()


def steps(folder):
    try:
        return len((folder / "metrics.json").read_text().splitlines())
    except FileNotFoundError:
        return 0


def test_a_comparison_on_slurm_is_the_one_on_this_machine(cluster, suite, tmp_path):
    output = tmp_path / "cluster"
    runs = output / "runs"
    first = Command(cluster, suite, output)
    first.until("dpk-seed2: started")
    # all are in the queue by now, and Slurm sees to their order
    waits = cluster.call("scontrol", "show", "job", number(runs / "dpk-seed1"))
    assert f"Dependency=afterok:{number(runs / 'big')}(" in waits

    preempted, cancelled = number(runs / "long-seed1"), number(runs / "long-seed2")
    wait_for(lambda: steps(runs / "long-seed1"))
    cluster.call("scancel", "--signal=USR1", preempted)
    wait_for(lambda: "Restarts=1" in cluster.call("scontrol", "show", "job", preempted))
    wait_for(lambda: steps(runs / "long-seed2"))
    cluster.stop_controller()
    time.sleep(2)  # a look or two at a queue of which nothing is known
    cluster.start_controller()
    cluster.call("scancel", cancelled)
    first.until("long-seed2: failed")
    first.interrupt()
    assert first.end() == 3
    assert "go on without this command" in first.said and preempted in first.said
    assert "long-seed1: failed" not in first.said

    second = Command(cluster, suite, output)
    second.until("long-seed1: goes on")
    second.until("long-seed2: started")
    # Slurm lets a job that is queued again wait for two minutes
    cluster.call("scontrol", "update", f"job={preempted}", "StartTime=now")
    assert second.end() == 0, second.said

    results = json.loads((output / "results.json").read_text())
    here = tmp_path / "here"
    compare([str(suite), "--output", str(here), "--workers", "2"])
    expected = json.loads((here / "results.json").read_text())
    assert results["finished"] == expected["finished"] == 7
    for name, row in expected["methods"].items():
        assert results["methods"][name]["values"] == row["values"]
        for seed in row["runs"]:
            folders = [x / "runs" / f"{name}-seed{seed}" for x in (output, here)]
            losses = [[x.get("total_loss") for x in read_metrics(folder)] for folder in folders]
            assert losses[0] == losses[1]
    resumed = results["methods"]["long"]["runs"]["1"]["resumed"]
    assert len(resumed) == 1 and resumed[0]["exact"]


def test_a_job_that_fails_takes_those_along_that_need_it(cluster, tmp_path, monkeypatch):
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_SECONDS_FOR_FILES", 1)
    teacher = Run("teacher", "no.yaml", tmp_path / "teacher")
    student = Run("student", "no.yaml", tmp_path / "student", after=("teacher",))
    jobs = Cluster("slurm", tmp_path / "jobs", {"gpus_per_node": 0, "timeout_min": 5}, {})
    ended = []
    with pytest.raises(UserError, match="The training teacher failed, so student could not"):
        train_all([teacher, student], jobs, lambda line: None, lambda *x: ended.append(x))
    assert ended == [(teacher, False)]
    assert "no.yaml" in teacher.log.read_text() and not student.log.exists()


def test_the_example_of_one_training_on_several_machines(cluster, tiny, tmp_path):
    output = tmp_path / "run"
    slots = ["--nodes=1", "--ntasks=2", "--ntasks-per-node=2", f"--output={tmp_path}/out"]
    env = {"PYTHON": sys.executable, "NPROC": "1", "OMP_NUM_THREADS": "1"}
    given = [f"--export=ALL,{','.join(f'{k}={v}' for k, v in env.items())}"]
    argv = ["--config-file", tiny.plain, "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 600]
    command = ["sbatch", f"--chdir={ROOT}", *slots, *given, "examples/slurm/train.sbatch", *argv]
    told = cluster.call(*map(str, command))
    job = told.split()[-1]
    wait_for(lambda: steps(output))
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: "Restarts=1" in cluster.call("scontrol", "show", "job", job))
    cluster.call("scontrol", "update", f"job={job}", "StartTime=now")
    wait_for((output / "results.json").exists, 200)
    resumed = json.loads((output / "results.json").read_text())["resumed"]
    assert len(resumed) == 1 and resumed[0]["exact"]

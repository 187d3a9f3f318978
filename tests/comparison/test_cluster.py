"""Comparisons whose trainings are jobs of Slurm: of a real one, where it is installed."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import yaml

from dpk_det.comparison import cluster as module
from dpk_det.comparison import jobs
from dpk_det.comparison.cluster import Cluster, Training
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


def run_again(cluster, job):
    """Let a job that is queued again run now; by itself Slurm waits for two minutes."""

    def runs():
        cluster.call("scontrol", "update", f"job={job}", "StartTime=now")
        return "JobState=RUNNING" in cluster.call("scontrol", "show", "job", job)

    wait_for(runs)


def test_a_comparison_on_slurm_is_the_one_on_this_machine(cluster, suite, tmp_path):
    output = tmp_path / "cluster"
    runs = output / "runs"
    first = Command(cluster, suite, output)
    first.until("dpk-seed2: started")
    # all are in the queue by now, and Slurm sees to their order
    waits = cluster.call("scontrol", "show", "job", number(runs / "dpk-seed1"))
    assert f"Dependency=afterok:{number(runs / 'big')}(" in waits

    scripts = [path.read_text() for path in output.rglob("*submission.sh")]
    assert scripts and all(re.search("srun .*--cpus-per-task=1 ", text) for text in scripts)

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
    run_again(cluster, preempted)
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
    workers = Cluster(tmp_path / "jobs", {"gpus_per_node": 0, "timeout_min": 5}, {})
    ended = []
    with pytest.raises(UserError, match="The training teacher failed, so student could not"):
        train_all([teacher, student], workers, lambda line: None, lambda *x: ended.append(x))
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
    run_again(cluster, job)
    wait_for((output / "results.json").exists, 200)
    resumed = json.loads((output / "results.json").read_text())["resumed"]
    assert len(resumed) == 1 and resumed[0]["exact"]


# ------------------------------------------------------------------ without a Slurm


TRAINS = """
import os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
(folder / "ready").touch()
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_before_there_is_a_step_queues_the_job_again(tmp_path, monkeypatch, number):
    # a stand-in that dies of the signal itself, as a training does that still imports torch
    (tmp_path / "train.py").write_text(TRAINS)
    command = [sys.executable, str(tmp_path / "train.py")]
    started = subprocess.Popen

    def popen(arguments, **keywords):
        return started([*command, *arguments[3:]], **keywords)

    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    run, again = Run("one", "no.yaml", tmp_path / "one"), []
    before = {x: signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, lambda *_: again.append("queued"))  # submitit's place

    def send():
        wait_for((run.folder / "ready").exists)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="one ended with status"):
            Training(run, {})()
    finally:
        thread.join()
        for x, handler in before.items():
            signal.signal(x, handler)
    assert again == ([] if number == signal.SIGTERM else ["queued"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cluster", "slurm", "--job", "nothing"], "--job has 'nothing': write NAME=VALUE"),
        (["--cluster", "slurm", "--job", "slurm_comment=@x"], "no YAML .*quote it"),
        (["--cluster", "slurm", "--gpus", "0"], "--gpus is of this machine"),
        (["--cluster", "slurm", "--workers", "2"], "--workers is of this machine"),
        (["--job", "timeout_min=5"], "--job is of --cluster, which is not given"),
    ],
)
def test_mistakes_in_the_options_end_in_a_sentence(suite, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        compare([str(suite), "--output", str(tmp_path / "out"), *options])
    assert re.search(message, capsys.readouterr().err)


def test_an_absent_slurm_and_odd_parameters_are_told(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    if slurm.absent():
        with pytest.raises(UserError, match="There is no Slurm here"):
            Cluster(tmp_path, {}, {})
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    with pytest.raises(UserError, match="submitit does not take .*nonsense"):
        Cluster(tmp_path, {"slurm_nonsense": 1}, {})


def test_a_line_of_the_queue_that_is_none_is_passed_over(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 'slurm is slow today'\necho\necho '7 R'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    run = Run("one", "", tmp_path / "one")
    run.folder.mkdir()
    (run.folder / "cluster_job").write_text("7")
    assert Cluster(tmp_path, {}, {}).find(run).status() is None  # it trains
    (run.folder / "cluster_job").write_text("8")
    assert Cluster(tmp_path, {}, {}).find(run) is None


def test_a_folder_that_was_made_on_a_gpu_is_known_again_without_one(tiny, tmp_path, monkeypatch):
    run = Run("one", str(tiny.plain), tmp_path / "one", ("SOLVER.MAX_ITER", "1"))
    train_all([run], jobs.Slots([{}]), lambda line: None)
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("DEVICE: cpu", "DEVICE: cuda"))
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    said = []
    train_all([run], Cluster(tmp_path / "jobs", {}, {}), said.append)
    assert said == ["one: done before"]
    with pytest.raises(UserError, match="MODEL.DEVICE differs"):
        train_all([run], jobs.Slots([{}]), said.append)

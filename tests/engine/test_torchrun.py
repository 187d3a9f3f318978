"""Two processes of torchrun that end before their time."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

WORKER = """
import os, sys
from pathlib import Path
from detectron2.engine import defaults
from detectron2.utils import comm
from dpk_det.engine import DistillTrainer, launch, train
from dpk_det.errors import UserError

defaults.collect_env_info = lambda: ""  # takes seconds
step = DistillTrainer.run_step

def run_step(self):
    step(self)
    rank = comm.get_rank()
    if self.iter == 1:
        Path(self.cfg.OUTPUT_DIR, f"pid{rank}").write_text(str(os.getpid()))
        if "MISTAKE" in os.environ and rank == 1:
            raise UserError("rank one is wrong: mend it.")

DistillTrainer.run_step = run_step
train.run()
"""


@pytest.fixture
def torchrun(tiny, tmp_path):
    """Starts the training command in two processes, for very many steps."""
    (tmp_path / "worker.py").write_text(WORKER)
    started = []

    def start(**env):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--master-addr", "127.0.0.1", "--master-port", port, tmp_path / "worker.py"]
        command += ["--config-file", tiny.plain, "OUTPUT_DIR", tmp_path]
        command += ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "100000"]
        env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (tmp_path / "out").open("w") as out:
            started.append(subprocess.Popen(command, env=os.environ | env, stdout=out, stderr=out))
        return started[0]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_mistake_of_one_rank_is_said_once_with_the_rank(torchrun, tmp_path):
    torchrun(MISTAKE="1").wait(120)
    out = (tmp_path / "out").read_text()
    sentence = "rank one is wrong: mend it."
    assert out.count(f"error (rank 1): {sentence}\n") == 1
    # torchrun has no other status than 1, and adds a report, which ends with the sentence
    *_, last, border = out.splitlines()
    assert set(border) == {"="}
    assert last == f"  traceback : error: {sentence}"
    assert "exitcode  : 2 " in out
    assert out.count("Traceback (most recent call last)") == 1  # torchrun's own


def test_processes_whose_torchrun_is_killed_save_and_end(torchrun, tmp_path, is_running):
    agent = torchrun()
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    wait_for(lambda: all(path.exists() and path.read_text() for path in pids))
    agent.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(is_running(path.read_text()) for path in pids), 60)
    out = (tmp_path / "out").read_text()
    assert out.count("Stopped by SIGTERM after step ") == 1
    assert "Traceback (most recent call last)" not in out
    saved = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text())
    assert saved["iteration"] >= 1

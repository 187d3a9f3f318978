"""Data loader workers, which signals to a whole group of processes reach as well."""

import multiprocessing
import os
import signal
import subprocess
import time

import pytest
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset

from dpk_det.data import TrainLoader
from dpk_det.engine import DistillTrainer


class Pids(Dataset):
    """Tells which process loads."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return os.getpid()


@pytest.fixture
def batches():
    """Batches that one worker loads."""
    make_sampler = lambda seed: TrainingSampler(4, seed=seed)  # noqa: E731
    batches = iter(TrainLoader(Pids(), make_sampler, 0, batch_size=1, num_workers=1))
    yield batches
    batches.close()


def test_a_worker_goes_on_after_signals_that_are_for_the_training(batches):
    (pid,) = next(batches)
    assert pid != os.getpid()
    for name in ("TERM", "USR1", "INT"):
        subprocess.run(["kill", f"-{name}", str(pid)], check=True)  # not sent by its parent
    time.sleep(0.3)
    assert {worker for _ in range(6) for worker in next(batches)} == {pid}


def test_those_of_an_evaluation_go_on_too(tiny):
    cfg = tiny.cfg("plain", "DATALOADER.NUM_WORKERS", 1)
    before = {*multiprocessing.active_children()}  # of earlier tests
    images = iter(DistillTrainer.build_test_loader(cfg, "tiny"))
    next(images)
    (worker,) = {*multiprocessing.active_children()} - before
    subprocess.run(["kill", "-USR1", str(worker.pid)], check=True)
    time.sleep(0.3)
    assert len(list(images)) == 7


def test_a_worker_ends_when_its_parent_ends_it(batches, is_running):
    (pid,) = next(batches)
    os.kill(pid, signal.SIGTERM)  # as multiprocessing does at the end of a process
    until = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.02)

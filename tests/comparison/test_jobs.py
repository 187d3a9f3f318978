"""In which environments trainings run side by side; test_runs.py starts them."""

import os

import pytest
import torch

from dpk_det.comparison.jobs import make_slots
from dpk_det.errors import UserError


def gpus_of(slots):
    return [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots]


@pytest.fixture
def machine(monkeypatch):
    """``machine(gpus, cores, visible)`` pretends to be one: nobody has all of these."""

    def pretend(gpus, cores=16, visible=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return pretend


def test_without_a_gpu_there_are_two_workers_of_one_thread(machine):
    machine(gpus=0)
    slot = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert make_slots() == [slot, slot]
    assert [s["OMP_NUM_THREADS"] for s in make_slots(workers=3, threads=4)] == ["4"] * 3
    machine(gpus=0, cores=1)
    assert len(make_slots()) == 1


def test_each_worker_has_a_gpu_and_many_share_one(machine):
    machine(gpus=4)
    assert gpus_of(make_slots()) == ["0", "1", "2", "3"]
    assert gpus_of(make_slots(gpus=["1", "3"])) == ["1", "3"]
    assert gpus_of(make_slots(workers=5, gpus=["1", "3"])) == ["1", "3", "1", "3", "1"]
    assert gpus_of(make_slots(workers=3, gpus=["2"])) == ["2", "2", "2"]
    assert gpus_of(make_slots(workers=1)) == ["0"]


def test_gpus_are_those_that_the_environment_shows(machine):
    machine(gpus=2, visible="5,7")
    assert gpus_of(make_slots()) == ["5", "7"]


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"threads": 0}, {"gpus": ["0"]}])
def test_slots_that_cannot_be_are_refused(machine, numbers):
    machine(gpus=0)
    with pytest.raises(UserError, match=f"--{next(iter(numbers))} is "):
        make_slots(**numbers)


def test_a_gpu_that_is_not_there_is_refused(machine):
    machine(gpus=2)
    with pytest.raises(UserError, match="--gpus names GPU 2 but this machine has 2"):
        make_slots(gpus=["0", "2"])
    machine(gpus=2, visible="2,7")  # the environment's own numbers
    assert gpus_of(make_slots(gpus=["7"])) == ["7"]

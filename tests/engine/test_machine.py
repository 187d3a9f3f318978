"""Memory is that of the process that asks, not of the one that started it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from dpk_det.engine import machine
from dpk_det.engine.machine import describe_machine, peak_memory_mb

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="counts RAM, which takes no GPU")


@on_cpu
def test_memory_that_was_taken_counts_after_it_is_given_back():
    before = peak_memory_mb()
    block = np.ones((int(before) + 100) * 2**17)  # as many MB, and 100 more, on top of what is held
    del block
    assert peak_memory_mb() > before + 50
    assert peak_memory_mb() < 3 * before + 300


@on_cpu
def test_the_memory_of_the_starting_process_does_not_count():
    held = np.ones(600 * 2**17)  # MB
    code = "from dpk_det.engine.machine import peak_memory_mb; print(peak_memory_mb())"
    found = float(subprocess.check_output([sys.executable, "-W", "ignore", "-c", code]))
    assert found < peak_memory_mb()
    assert held[0] == 1


@pytest.mark.parametrize("used", [True, False])
def test_a_gpu_counts_where_this_process_uses_it(monkeypatch, used):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(machine.torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(machine.torch.cuda, "get_device_name", lambda: "a card")
    assert (peak_memory_mb() == 3) is used
    assert describe_machine()["gpu"] == ("a card" if used else None)
    assert describe_machine(on_gpu=True)["gpu"] == "a card"


def test_the_machine_is_described_with_versions():
    found = describe_machine()
    assert found["torch"] == torch.__version__ and found["detectron2"]
    assert found["cores"] >= 1 and found["threads"] >= 1

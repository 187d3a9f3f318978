"""One folder, one training."""

import os
import socket
import subprocess
import sys

import pytest

from dpk_det.engine.lock import training_lock
from dpk_det.errors import BUSY, BusyError


def test_a_folder_is_made_held_and_let_go(tmp_path):
    for _ in range(2):
        with (
            training_lock(tmp_path / "run"),
            pytest.raises(BusyError, match="being trained by another process"),
            training_lock(tmp_path / "run"),
        ):
            pass


def test_it_is_held_against_other_processes_and_not_by_forks(tmp_path):
    fork = os.fork if hasattr(os, "fork") else pytest.skip("needs fork")
    with training_lock(tmp_path):
        source = f"from dpk_det.engine.lock import *\nwith training_lock({str(tmp_path)!r}): pass"
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
        assert "BusyError" in done.stderr
        here, there = socket.socketpair()
        child = fork()
        if child == 0:  # as a data loader's worker, which outlives a killed training by seconds
            here.close()
            there.send(b"I live")
            there.recv(1)
            os._exit(0)
        there.close()
        here.recv(6)
    try:
        with training_lock(tmp_path):
            pass
    finally:
        here.close()
        os.waitpid(child, 0)


def test_a_training_in_a_folder_that_another_holds_writes_nothing(tiny, tmp_path, command, capsys):
    with training_lock(tmp_path), pytest.raises(SystemExit) as stop:
        command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path)
    assert stop.value.code == BUSY
    assert "choose another OUTPUT_DIR" in capsys.readouterr().err
    assert [x.name for x in tmp_path.iterdir()] == [".lock"]


def test_evaluating_and_checking_need_no_lock(tiny, trained, tmp_path, command):
    with training_lock(tmp_path):
        opts = ("MODEL.WEIGHTS", trained / "model_final.pth", "OUTPUT_DIR", tmp_path)
        assert command("--config-file", tiny.plain, "--eval-only", *opts)
        command("--config-file", tiny.plain, "--check", *opts)

"""Signals that end a training, in this process, which sends them to itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import types

import pytest
import torch

from dpk_det.engine import DistillTrainer, signals
from dpk_det.engine.signals import PARENT, Stopped, at_once, die_with_parent, watched
from dpk_det.errors import STOPPED


@pytest.fixture(autouse=True)
def handlers():
    """Gives the handlers from before the test, and puts them back after it."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def send(monkeypatch):
    """``send(method, call, signal)``: a trainer's method sends it at a call, before its work."""

    def at(method, call, number):
        intact, calls = getattr(DistillTrainer, method), []

        def wrapper(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return intact(*args, **kwargs)

        monkeypatch.setattr(DistillTrainer, method, wrapper)

    return at


@pytest.fixture
def stops(command, capsys):
    """Runs a training that a signal must stop: status 3, one line, no traceback; the line."""

    def run(*argv):
        with pytest.raises(SystemExit) as stop:
            command(*argv)
        assert stop.value.code == STOPPED
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        (line,) = err.splitlines()
        return line

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_training_finishes_its_step_saves_and_goes_on_from_there(
    tiny, tmp_path, stops, command, send, number
):
    send("run_step", 2, number)
    args = ("--config-file", tiny.plain, "--resume", "OUTPUT_DIR", tmp_path)
    line = stops(*args)
    assert line == f"Stopped by {number.name} after step 2; --resume goes on from there."
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert torch.load(tmp_path / "model_0000001.pth")["iteration"] == 1
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "inference").exists()  # and evaluates nothing
    os.kill(os.getpid(), signal.SIGTERM)  # it is on its way out, and stopped by no other

    command(*args)
    assert (tmp_path / "results.json").exists()
    assert (tmp_path / "metrics.json").read_text().count('"iteration": 2') == 1


def test_in_the_last_step_the_final_model_is_saved_and_nothing_evaluated(
    tiny, tmp_path, stops, send
):
    send("run_step", 3, signal.SIGTERM)
    line = stops("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path)
    assert "after step 3" in line
    assert [x.name for x in tmp_path.glob("*.pth")] == ["model_final.pth"]
    assert not (tmp_path / "inference").exists()


@pytest.mark.parametrize("method", ["start_from", "build_evaluator"])
def test_setting_up_and_evaluating_end_at_once(tiny, tmp_path, stops, send, method):
    send(method, 1, signal.SIGTERM)
    line = stops("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path)
    assert line == "Stopped by SIGTERM; --resume goes on from the last checkpoint."
    assert (tmp_path / "model_final.pth").exists() == (method == "build_evaluator")
    assert not (tmp_path / "results.json").exists()


def test_no_step_is_lost_when_an_evaluation_on_the_way_is_stopped(
    tiny, tmp_path, stops, command, send
):
    args = ("--config-file", tiny.plain, "--resume", "TEST.EVAL_PERIOD", 2, "OUTPUT_DIR")
    command(*args, tmp_path / "whole")
    for _ in range(2):  # the second time in the evaluation that is repeated
        send("build_evaluator", 1, signal.SIGTERM)
        stops(*args, tmp_path / "stopped")
        assert [x.name for x in tmp_path.glob("stopped/*.pth")] == ["model_0000001.pth"]
    command(*args, tmp_path / "stopped")
    results = json.loads((tmp_path / "stopped/results.json").read_text())
    assert results["resumed"] == [{"step": 2, "exact": True}] * 2
    lines = map(json.loads, (tmp_path / "stopped/metrics.json").read_text().splitlines())
    assert len([line for line in lines if "bbox/AP" in line]) == 2  # after steps 2 and 3
    whole, stopped = (
        torch.load(tmp_path / x / "model_final.pth")["model"] for x in ("whole", "stopped")
    )
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())


def test_an_evaluation_does_not_begin_after_a_signal():
    with watched():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), at_once():
            pytest.fail("began")


def test_outside_a_training_signals_are_left_alone(handlers):
    for end in (None, ValueError):
        with contextlib.suppress(ValueError), watched():
            assert signal.getsignal(signal.SIGTERM) is not handlers[signal.SIGTERM]
            if end:
                raise end
        assert {n: signal.getsignal(n) for n in signals.SIGNALS} == handlers


def test_a_second_ctrl_c_ends_at_once_but_not_the_same_press_passed_on():
    source = """
import os, signal, time
from dpk_det.engine import signals
with signals.watched():
    signals.StopHook().before_train()  # steps are finished from here on
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGINT)
    print("is still there", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("goes on\n", "Interrupted at once.\n")


def test_a_process_that_waits_for_trainings_passes_signals_on():
    source = """
import multiprocessing, os, signal, time, types
from dpk_det.engine import signals

def train(ready):
    with signals.watched():
        hook = signals.StopHook()
        hook.trainer = types.SimpleNamespace(iter=0, max_iter=1)  # there is nothing to save
        hook.before_train()
        ready.set()
        while True:
            time.sleep(0.01)
            hook.after_step()

fork = multiprocessing.get_context("fork")
readies = [fork.Event() for _ in range(2)]
children = [fork.Process(target=train, args=(ready,)) for ready in readies]
with signals.pass_signals_on():
    for child in children:
        child.start()
    for ready in readies:
        ready.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    for child in children:
        child.join()
print([child.exitcode for child in children])
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[3, 3]\n", "")


def test_a_process_whose_parent_is_gone_already_stops(monkeypatch):
    monkeypatch.setattr(signals, "_parent", None)  # is put back, for the tests that follow
    libc = types.SimpleNamespace(prctl=lambda *args: 0)  # or pytest itself would be tied
    monkeypatch.setattr(signals.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setenv(PARENT, "1234567")
    with pytest.raises(Stopped) as stopped:
        die_with_parent()
    assert "gone" in stopped.value.message
    assert PARENT not in os.environ  # it is not that of the processes that this one starts

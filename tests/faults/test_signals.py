"""Trainings that a signal stops: they save, say so in a line, and are resumed to the same end."""

import signal

import pytest
from harness import MAX_ITER, Fault, check_equal, check_whole, last_lines

whole = pytest.mark.whole
MOMENTS = {
    "the start": {"at": "config"},
    "the first step": {"at": "step", "n": 1},
    "a step": {"at": "step", "n": 4},
    "the last step": {"at": "step", "n": MAX_ITER},
    "the evaluation": {"at": "evaluation"},
}
SENT = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")


@pytest.mark.parametrize(
    "name, sent, moment",
    [
        pytest.param(
            *(name, sent, moment),
            marks=[] if (name, sent, moment) == ("plain", "SIGTERM", "a step") else whole,
        )
        for name in ("plain", "dpk-workers")
        for sent in SENT
        for moment in MOMENTS
    ],
)
def test_a_signal_stops_a_training_that_resumes(experiment, tmp_path, name, sent, moment):
    one = experiment(name)
    folder = tmp_path / "run"
    do = f"group {sent}" if "workers" in name else sent  # as a terminal and clusters do
    first = one.train(folder, faults=[{**MOMENTS[moment], "do": do}])
    first.stop()
    if moment == "a step":
        assert first.steps == [0, 1, 2, 3]  # it is finished, and none is begun
    check_whole(folder)
    first.left_behind()
    second = one.resume(folder).succeed()
    if "step" in moment and {*first.steps} & {*second.steps}:
        raise Fault("not saved: steps are repeated")
    check_equal(folder, one.reference, [first, second])


@whole
def test_a_second_interrupt_ends_a_training_at_once(experiment, tmp_path):
    one = experiment("dpk-workers")
    folder = tmp_path / "run"
    fault = {**MOMENTS["a step"], "do": "group SIGINT pause SIGINT"}
    first = one.train(folder, faults=[fault])
    status = first.wait()
    if "Traceback" in first.said:
        raise Fault(f"traceback: status {status}: {last_lines(first.said)}")
    assert status in (128 + signal.SIGINT, -signal.SIGINT), status
    check_whole(folder)
    first.left_behind()
    second = one.resume(folder).succeed()
    check_equal(folder, one.reference, [first, second])


@whole
def test_several_signals_while_it_saves(experiment, tmp_path):
    # a cluster's warning and its end: the one after the other
    one = experiment("plain")
    folder = tmp_path / "run"
    fault = {**MOMENTS["a step"], "do": "SIGUSR1 SIGTERM SIGTERM"}
    first = one.train(folder, faults=[fault])
    first.stop()
    second = one.resume(folder).succeed()
    check_equal(folder, one.reference, [first, second])


@whole
def test_a_training_is_stopped_and_resumed_at_every_step(experiment, tmp_path):
    one = experiment("dpk")
    folder, commands = tmp_path / "run", []
    for step in range(MAX_ITER):
        fault = {"at": "step", "n": 1, "do": SENT[step % 3]}
        command = one.resume(folder, faults=[fault])
        commands.append(command)
        command.stop()
        assert command.steps == [step]
    commands.append(one.resume(folder).succeed())
    check_equal(folder, one.reference, commands)

"""How long a comparison takes, by a clock that is made up."""

import json

import pytest

from dpk_det.comparison.outlook import Outlook
from dpk_det.comparison.run import Run


@pytest.fixture
def run(tmp_path):
    """``run(name, after)``: a run whose row is its name without the seed."""

    def make(name, after=()):
        (tmp_path / name).mkdir(exist_ok=True)
        return Run(name, "c.yaml", tmp_path / name, after=after, row=name.partition("-")[0])

    return make


def log(run, step):
    with (run.folder / "metrics.json").open("a") as file:
        file.write(json.dumps({"iteration": step - 1}) + "\n")


def test_nothing_is_said_before_a_pace_is_known(run):
    outlook = Outlook({"a": 100, "b": 100}, 1)
    outlook.watch(run("a"), 0)
    assert outlook.seconds_left(50, [run("a")], [run("b")], []) is None


def test_a_run_goes_on_at_its_own_pace_and_others_at_that_of_their_row(run):
    steps = {"kd-1": 100, "kd-2": 200, "dpk-1": 100}
    outlook, kd, kd2, dpk = Outlook(steps, 1), run("kd-1"), run("kd-2"), run("dpk-1")
    outlook.watch(kd, 1000)
    log(kd, 20)  # 40 seconds: 2 per step, start and evaluations included
    assert outlook.seconds_left(1040, [kd], [], []) == pytest.approx(160)
    assert outlook.seconds_left(1040, [kd], [kd2], []) == pytest.approx(160 + 400)
    assert outlook.seconds_left(1040, [kd], [kd2, dpk], []) == pytest.approx(160 + 400 + 200)
    outlook.end(kd, 1300)  # 3 per step
    outlook.watch(dpk, 1300)
    log(dpk, 50)
    assert outlook.seconds_left(1350, [dpk], [kd2], []) == pytest.approx(50 + 600)


def test_steps_done_before_a_resume_cost_nothing_and_say_nothing_of_the_pace(run):
    outlook, a = Outlook({"a": 100}, 1), run("a")
    for step in (20, 40, 60):
        log(a, step)
    (a.folder / "last_checkpoint").write_text("model_0000039.pth")
    outlook.watch(a, 0)
    assert outlook.seconds_left(10, [a], [], []) is None
    log(a, 50)  # 10 steps in 20 seconds
    assert outlook.seconds_left(20, [a], [], []) == pytest.approx(100)


def test_a_run_of_which_no_step_was_seen_goes_on_all_the_same(run):
    outlook, a, b = Outlook({"x-1": 10, "x-2": 10}, 2), run("x-1"), run("x-2")
    outlook.watch(a, 0)
    outlook.end(a, 100)
    outlook.watch(b, 100)
    assert outlook.seconds_left(130, [b], [], []) == pytest.approx(70)
    assert outlook.seconds_left(300, [b], [], []) == 0


def test_workers_order_and_what_waits_for_what_are_accounted_for(run):
    teacher = run("t")
    steps = {"t": 100, "p-1": 30, "d-1": 50, "d-2": 50, "d-3": 20}
    outlook = Outlook(steps, 2)
    outlook.watch(teacher, 0)
    log(teacher, 10)
    now = 10  # a second per step: 90 to go
    plain = run("p-1")
    students = [run(f"d-{i}", after=("t",)) for i in (1, 2, 3)]
    assert outlook.seconds_left(now, [teacher], [plain], []) == pytest.approx(90)
    # both workers take a student at 90, and one of them the third at 140
    assert outlook.seconds_left(now, [teacher], [plain, *students], []) == pytest.approx(160)
    outlook._workers = 1
    left = outlook.seconds_left(now, [teacher], [plain, *students], [])
    assert left == pytest.approx(90 + 30 + 50 + 50 + 20)


def test_what_others_train_takes_no_worker_but_is_waited_for(run):
    teacher, student = run("t"), run("d-1", after=("t",))
    outlook = Outlook({"t": 100, "d-1": 10, "p-1": 60}, 1)
    log(teacher, 30)
    outlook.watch(teacher, 0, starts=False)
    log(teacher, 40)
    assert outlook.seconds_left(10, [], [run("p-1"), student], [teacher]) == pytest.approx(70)


def test_an_evaluation_takes_no_time(run):
    outlook, a, b = Outlook({"a": 10}, 1), run("a"), run("b")
    outlook.watch(a, 0)
    outlook.end(a, 20)
    outlook.watch(b, 20)
    assert outlook.seconds_left(25, [b], [], []) == 0


@pytest.mark.parametrize("content", [b"", b"\xff", b"model_final.pth", b"gone"])
def test_a_damaged_note_of_the_last_checkpoint_counts_as_none(run, content):
    outlook, a = Outlook({"a": 10}, 1), run("a")
    (a.folder / "last_checkpoint").write_bytes(content)
    outlook.watch(a, 0)
    log(a, 5)
    assert outlook.seconds_left(10, [a], [], []) == pytest.approx(10)

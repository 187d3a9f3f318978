"""Experiments of several trainings. The trainings are stand-ins of one line, but for their end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dpk_det.comparison import runs
from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.run import Run
from dpk_det.comparison.runs import describe, progress, train_all
from dpk_det.engine.signals import Stopped
from dpk_det.errors import UserError

RESULTS = {"results": {"bbox": {"AP": 12.34}}}
FINISH = f"open(folder + '/results.json', 'w').write('{json.dumps(RESULTS)}')"
# it goes on for a while, for others to be started meanwhile
DWELL = "import time; time.sleep(0.5)"


def quiet(line):
    """Takes the progress and says nothing."""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Runs of lines of Python, which note their start and end; and the processes started."""

    class StandIn:
        scripts: dict[str, str] = {}
        processes: dict[str, subprocess.Popen] = {}
        slots: list[dict] = []
        diary = tmp_path / "diary"

        def run(self, name, script=FINISH, after=()):
            self.scripts[name] = script
            return Run(name, "none.yaml", tmp_path / name, after=after)

        def start(self, run, slot):
            run.folder.mkdir(exist_ok=True)
            self.slots.append(slot)
            code = [
                f"folder, note = {str(run.folder)!r}, lambda what: "
                f"print({run.name!r}, what, file=open({str(self.diary)!r}, 'a'))",
                "note('starts')",
                self.scripts[run.name],
                "note('ends')",
            ]
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", "\n".join(code)], start_new_session=True
            )
            self.processes[run.name] = process
            return process

        def events(self):
            return self.diary.read_text().splitlines() if self.diary.exists() else []

    stand_in = StandIn()
    StandIn.scripts, StandIn.processes, StandIn.slots = {}, {}, []
    monkeypatch.setattr(runs, "_start", stand_in.start)
    return stand_in


# ------------------------------------------------------------------ order


def test_a_run_waits_for_those_it_comes_after(stand_in):
    finish_late = f"{DWELL}\n{FINISH}"
    todo = [
        stand_in.run("student", after=("teacher",)),
        stand_in.run("teacher", finish_late),
        stand_in.run("plain", finish_late),
    ]
    said = []
    train_all(todo, [{}, {}, {}], said.append)  # one is free for the student
    events = stand_in.events()
    assert len(events) == 6
    assert events.index("student starts") > events.index("teacher ends")
    # the plain one has nothing to wait for
    assert events.index("plain starts") < events.index("teacher ends")
    assert any(line.startswith("teacher: done, bbox AP 12.3 (") for line in said)
    assert any(line.startswith("student: started, log in ") for line in said)


def test_no_more_run_at_a_time_than_there_are_workers(stand_in):
    todo = [stand_in.run(name, f"{DWELL}\n{FINISH}") for name in "abc"]
    train_all(todo, [{}], quiet)
    expected = [f"{name} {what}" for name in "abc" for what in ("starts", "ends")]
    assert stand_in.events() == expected


def test_what_is_done_is_not_done_again(stand_in, tmp_path):
    done, new = stand_in.run("done"), stand_in.run("new", after=("done",))
    done.folder.mkdir()
    (done.folder / "results.json").write_text(json.dumps(RESULTS))
    said = []
    train_all([done, new], [{}], said.append)
    assert said[0] == "done: done before"
    assert said[-1] == "new: done, bbox AP 12.3 (2 of 2 done)"
    assert stand_in.events() == ["new starts", "new ends"]
    assert new.results == RESULTS


def test_what_is_older_than_a_run_that_it_needs_is_refused(stand_in):
    teacher, student = stand_in.run("teacher"), stand_in.run("student", after=("teacher",))
    for run, seconds in ((student, 1000), (teacher, 2000)):
        run.folder.mkdir()
        (run.folder / "results.json").write_text(json.dumps(RESULTS))
        os.utime(run.folder / "results.json", (seconds, seconds))
    with pytest.raises(UserError, match="student was made before the teacher it needs"):
        train_all([teacher, student], [{}], quiet)
    os.utime(student.folder / "results.json", (3000, 3000))
    train_all([teacher, student], [{}], quiet)
    assert stand_in.events() == []


# ------------------------------------------------------------------ two at a time


@pytest.fixture
def look_often(monkeypatch):
    """See at once what others have done."""
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LOOKS", 0)


@contextlib.contextmanager
def busy(run):
    """Another process trains it."""
    run.folder.mkdir()
    code = "import sys, portalocker; f = open(sys.argv[1], 'a'); portalocker.lock(f, 1 | 4); "
    code += "print('held', flush=True); input()"
    command = [sys.executable, "-c", code, str(run.folder / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()

        def end():
            if process.poll() is None:
                process.communicate("\n")

        try:
            yield end
        finally:
            end()


def test_what_another_process_trains_is_waited_for_and_others_go_on(stand_in, look_often):
    teacher = stand_in.run("teacher")
    student = stand_in.run("student", after=("teacher",))
    plain = stand_in.run("plain")
    said, finished = [], []

    def say(line):
        said.append(line)
        if line.startswith("plain: done"):  # then the other one comes to its end
            (teacher.folder / "results.json").write_text(json.dumps(RESULTS))
            end()

    def ended(run, done):
        finished.append((run.name, done))

    with busy(teacher) as end:
        train_all([teacher, student, plain], [{}], say, ended)
    assert stand_in.events()[:2] == ["plain starts", "plain ends"]
    assert not [event for event in stand_in.events() if event.startswith("teacher")]
    assert finished == [("plain", True), ("teacher", True), ("student", True)]
    assert said[0] == "teacher: another process trains it, which is waited for"
    assert any(line.startswith("teacher: done by another process, bbox AP 12.3") for line in said)


def test_what_another_process_gives_up_is_taken_up(stand_in, look_often):
    run, said = stand_in.run("run"), []
    with busy(run) as end:

        def say(line):
            said.append(line)
            end()

        train_all([run], [{}], say)
    assert [line.partition(",")[0] for line in said] == [
        "run: another process trains it",
        "run: started",
        "run: done",
    ]
    assert run.results == RESULTS


def test_a_training_that_finds_its_folder_busy_is_no_failure(stand_in, look_often):
    # another one took the lock between our look and the training's own
    code = "import os; seen = folder + '/seen'\n"
    code += f"if not os.path.exists(seen): open(seen, 'w'); os._exit(4)\n{FINISH}"
    run = stand_in.run("run", code)
    said = []
    train_all([run], [{}], said.append)
    assert stand_in.events() == ["run starts", "run starts", "run ends"]
    assert [line.partition(",")[0] for line in said] == [
        "run: started",
        "run: another process trains it",
        "run: started",
        "run: done",
    ]


def test_what_another_process_has_finished_meanwhile_is_not_trained_again(stand_in):
    first, second = stand_in.run("first"), stand_in.run("second")

    def say(line):
        if line.startswith("first: done"):
            second.folder.mkdir()
            (second.folder / "results.json").write_text(json.dumps(RESULTS))

    train_all([first, second], [{}], say)
    assert stand_in.events() == ["first starts", "first ends"]


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("script", ["raise SystemExit(1)", ""])
def test_a_failed_run_stops_only_those_that_need_it_and_names_its_log(stand_in, script):
    # it fails by its status, or because it left no results
    bad = stand_in.run("bad", script)
    later = stand_in.run("later", after=("bad",))
    latest = stand_in.run("latest", after=("later",))
    good = stand_in.run("good", f"{DWELL}\n{FINISH}")
    next_one = stand_in.run("next", after=("good",))
    ended = []
    with pytest.raises(UserError) as error:
        train_all(
            [bad, later, latest, good, next_one],
            [{}, {}],
            quiet,
            lambda run, done: ended.append((run.name, done)),
        )
    assert str(error.value).startswith(
        "The training bad failed, so later, latest could not be trained: the output is in "
        f"{bad.log}; "
    )
    assert good.results == next_one.results == RESULTS
    assert not {"later", "latest"} & set(stand_in.processes)
    assert ended == [("bad", False), ("good", True), ("next", True)]


def test_all_that_failed_are_named(stand_in):
    bad = [stand_in.run(name, "raise SystemExit(1)") for name in "ab"]
    with pytest.raises(UserError, match=f"2 trainings failed: .* {bad[0].log}, {bad[1].log};"):
        train_all(bad, [{}], quiet)


def test_results_that_are_damaged_fail_one_run_alone(stand_in):
    bad = stand_in.run("bad", "open(folder + '/results.json', 'w').write('{')")
    good, said = stand_in.run("good"), []
    with pytest.raises(UserError, match="The training bad failed"):
        train_all([bad, good], [{}], said.append)
    assert good.results == RESULTS
    assert any("bad/results.json is damaged" in line for line in said)


# ------------------------------------------------------------------ signals

# saves when it is ended
SAVES = """
import signal, sys, time
def end(*_):
    note('saves')
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
note('ready')
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); note('ready')\n"
STUBBORN += "time.sleep(60)"


@contextlib.contextmanager
def signalled(stand_in, *numbers, event="slow ready"):
    """Signals come to this process: the first after an event, the next ones half a second later."""

    def send():
        while event not in stand_in.events():
            time.sleep(0.05)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=send)
    with Interrupts().taken() as interrupts:
        thread.start()
        try:
            yield interrupts
        finally:
            thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_trainings_which_save_first(stand_in, number):
    slow, said = stand_in.run("slow", SAVES), []
    with signalled(stand_in, number) as interrupts:
        with pytest.raises(Stopped) as error:
            train_all([slow], [{}], said.append, interrupts=interrupts)
    assert error.value.code == 3
    assert error.value.message == f"Stopped by {number.name}; call again to go on from there."
    assert stand_in.events() == ["slow starts", "slow ready", "slow saves"]
    assert stand_in.processes["slow"].returncode == 3
    assert said[-1].startswith("Ending 1 training(s); they save first.")


def test_ctrl_c_once_more_ends_a_training_at_once(stand_in):
    slow = stand_in.run("slow", STUBBORN)
    with signalled(stand_in, signal.SIGINT, signal.SIGINT) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            train_all([slow], [{}], quiet, interrupts=interrupts)
    assert stand_in.processes["slow"].returncode == -signal.SIGKILL


def test_a_training_that_does_not_end_is_killed(stand_in, monkeypatch):
    monkeypatch.setattr(runs, "_PATIENCE", 0.2)
    slow = stand_in.run("slow", STUBBORN)
    with signalled(stand_in, signal.SIGTERM, signal.SIGTERM) as interrupts:
        with pytest.raises(Stopped):
            train_all([slow], [{}], quiet, interrupts=interrupts)
    assert stand_in.processes["slow"].returncode == -signal.SIGKILL


def test_any_exception_ends_the_trainings(stand_in):
    def say(line):
        raise ZeroDivisionError

    slow = stand_in.run("slow", "import time; time.sleep(60)")
    with pytest.raises(ZeroDivisionError):
        train_all([slow], [{}], say)
    assert stand_in.processes["slow"].returncode not in (None, 0)


def test_a_training_that_a_signal_stopped_is_told_so(stand_in):
    run, said = stand_in.run("run", "raise SystemExit(3)"), []
    with pytest.raises(UserError, match="The training run failed"):
        train_all([run], [{}], said.append)
    assert said[-1].startswith("run: was stopped by a signal, log in ")


def test_a_signal_that_finds_nothing_to_end_ends_this(monkeypatch):
    with pytest.raises(Stopped, match="3"), Interrupts().taken():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


# ------------------------------------------------------------------ processes


def test_the_command_is_the_training_command_in_its_slots_environment(tmp_path, monkeypatch):
    started = []

    def popen(command, **kwargs):
        started.append((command, kwargs))
        kwargs["stdout"].write("hello\n")

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setenv("KEPT", "yes")
    run = Run("r", "c.yaml", tmp_path / "new", opts=("SEED", "3"))
    runs._start(run, {"CUDA_VISIBLE_DEVICES": "3"})
    command, kwargs = started[0]
    expected = ["--config-file", "c.yaml", "--resume", "SEED", "3", "OUTPUT_DIR", str(run.folder)]
    assert command == [sys.executable, "-m", "dpk_det.engine.train", *expected]
    assert kwargs["env"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert kwargs["env"]["KEPT"] == "yes"
    assert kwargs["env"]["DPK_DET_PARENT"] == str(os.getpid())
    assert kwargs["start_new_session"]
    assert kwargs["stderr"] == subprocess.STDOUT
    assert (tmp_path / "new" / "train.log").read_text() == "hello\n"


def test_a_slot_is_of_one_training_at_a_time(stand_in):
    todo = [stand_in.run(name, f"{DWELL}\n{FINISH}") for name in "abcd"]
    train_all(todo, [{"GPU": "0"}, {"GPU": "1"}], quiet)
    used = [slot["GPU"] for slot in stand_in.slots]
    assert sorted(used[:2]) == sorted(used[2:]) == ["0", "1"]


# ------------------------------------------------------------------ what is said


def test_progress_tells_step_loss_and_minutes(tmp_path):
    run = Run("r", "c.yaml", tmp_path)
    assert progress(run) == "r: starting"
    line = {"iteration": 99, "total_loss": 1.256, "eta_seconds": 300}
    (tmp_path / "metrics.json").write_text(json.dumps(line))
    assert progress(run) == "r: step 100, loss 1.26, 5 min to go"


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ({"bbox": {"AP": 1.25, "AP50": 3.0}, "segm": {"AP": 2.0}}, "bbox AP 1.2, segm AP 2.0"),
        ({"classification": {"top1": 90.0, "top5": 99.0}}, "classification top1 90.0"),
        ({"bbox": {"AP": None}}, "nothing measured"),
        ({}, "nothing measured"),
    ],
)
def test_a_finished_run_is_described_by_its_ap_or_what_it_has(tmp_path, results, text):
    (tmp_path / "results.json").write_text(json.dumps({"results": results}))
    assert describe(Run("r", "c.yaml", tmp_path)) == text

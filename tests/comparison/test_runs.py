"""Experiments of several trainings, under a stand-in for the training command."""

import contextlib
import json
import os
import signal
import threading
import time

import pytest

from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import Slots
from dpk_det.comparison.run import Run
from dpk_det.comparison.runs import train_all
from dpk_det.engine.lock import training_lock
from dpk_det.engine.signals import Stopped
from dpk_det.errors import UserError

RESULTS = {"results": {"bbox": {"AP": 12.34}}}
# it goes on for a while, for others to be started meanwhile
DWELL = "time.sleep(0.5); finish()"


def quiet(line):
    """Takes the progress and says nothing."""


def finished_before(run):
    """Leaves the results of a run that was trained before."""
    run.folder.mkdir(exist_ok=True)
    (run.folder / "model_final.pth").touch()
    (run.folder / "results.json").write_text(json.dumps(RESULTS))


# ------------------------------------------------------------------ order


def test_a_run_waits_for_those_it_comes_after(stand_in):
    todo = [
        stand_in.run("student", after=("teacher",)),
        stand_in.run("teacher", f"until('plain starts'); {DWELL}"),
        stand_in.run("plain", DWELL),
    ]
    said = []
    train_all(todo, Slots([{}, {}, {}]), said.append)  # one is free for the student
    events = stand_in.events()
    assert len(events) == 6
    assert events.index("student starts") > events.index("teacher ends")
    # the plain one has nothing to wait for
    assert events.index("plain starts") < events.index("teacher ends")
    assert any(line.startswith("teacher: done, bbox AP 12.3 (") for line in said)
    assert any(line.startswith("student: started, log in ") for line in said)


def test_no_more_run_at_a_time_than_there_are_workers(stand_in):
    todo = [stand_in.run(name, DWELL) for name in "abc"]
    train_all(todo, Slots([{}]), quiet)
    expected = [f"{name} {what}" for name in "abc" for what in ("starts", "ends")]
    assert stand_in.events() == expected


def test_what_is_done_is_not_done_again(stand_in, tmp_path):
    done, new = stand_in.run("done"), stand_in.run("new", after=("done",))
    finished_before(done)
    said = []
    train_all([done, new], Slots([{}]), said.append)
    assert said[0] == "done: done before"
    assert said[-1] == "new: done, bbox AP 12.3 (2 of 2 done)"
    assert stand_in.events() == ["new starts", "new ends"]


def test_a_teacher_without_weights_is_trained_again_where_it_is_needed(stand_in):
    teacher, spare = stand_in.run("teacher"), stand_in.run("spare")
    student, old = (stand_in.run(name, after=("teacher",)) for name in ("student", "old"))
    for run in (teacher, spare, old):
        finished_before(run)
        (run.folder / "model_final.pth").unlink()
    said = []
    train_all([teacher, spare, old, student], Slots([{}]), said.append)
    assert said[0] == "teacher: trained again, because its weights are not here"
    assert stand_in.events() == [
        f"{name} {what}" for name in ("teacher", "student") for what in ("starts", "ends")
    ]


def test_what_is_older_than_a_run_that_it_needs_is_refused(stand_in):
    teacher, student = stand_in.run("teacher"), stand_in.run("student", after=("teacher",))
    for run, seconds in ((student, 1000), (teacher, 2000)):
        finished_before(run)
        os.utime(run.folder / "results.json", (seconds, seconds))
    with pytest.raises(UserError, match="student was made before the teacher it needs"):
        train_all([teacher, student], Slots([{}]), quiet)
    os.utime(student.folder / "results.json", (3000, 3000))
    train_all([teacher, student], Slots([{}]), quiet)
    assert stand_in.events() == []


# ------------------------------------------------------------------ two at a time


def busy(run):
    """Another one trains it, until this is closed."""
    lock = contextlib.ExitStack()
    lock.enter_context(training_lock(run.folder))
    return lock


def test_what_another_process_trains_is_waited_for_and_others_go_on(stand_in):
    teacher = stand_in.run("teacher")
    student = stand_in.run("student", after=("teacher",))
    plain = stand_in.run("plain")
    said, finished = [], []

    def say(line):
        said.append(line)
        if line.startswith("plain: done"):  # then the other one comes to its end
            finished_before(teacher)
            lock.close()

    def ended(run, done):
        finished.append((run.name, done))

    with busy(teacher) as lock:
        train_all([teacher, student, plain], Slots([{}]), say, ended)
    assert stand_in.events()[:2] == ["plain starts", "plain ends"]
    assert not [event for event in stand_in.events() if event.startswith("teacher")]
    assert finished == [("plain", True), ("teacher", True), ("student", True)]
    assert said[0] == "teacher: another process trains it, which is waited for"
    assert any(line.startswith("teacher: done by another process, bbox AP 12.3") for line in said)


def test_what_another_process_gives_up_is_taken_up(stand_in):
    run, said = stand_in.run("run"), []
    todo = [run, stand_in.run("after", after=("run",))]
    with busy(run) as lock:

        def say(line):
            said.append(line)
            lock.close()

        train_all(todo, Slots([{}]), say)
    assert [line.partition(",")[0] for line in said] == [
        "run: another process trains it",
        "run: started",
        "run: done",
        "after: started",
        "after: done",
    ]


def test_a_training_that_finds_its_folder_busy_is_no_failure(stand_in):
    # another one took the lock between our look and the training's own
    run = stand_in.run(
        "run", "os.path.exists('seen') or open('seen', 'w') and os._exit(4); finish()"
    )
    said = []
    train_all([run], Slots([{}]), said.append)
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
            finished_before(second)

    train_all([first, second], Slots([{}]), say)
    assert stand_in.events() == ["first starts", "first ends"]


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("script", ["raise SystemExit(1)", ""])
def test_a_failed_run_stops_only_those_that_need_it_and_names_its_log(stand_in, script):
    # it fails by its status, or because it left no results
    bad = stand_in.run("bad", script)
    later = stand_in.run("later", after=("bad",))
    latest = stand_in.run("latest", after=("later",))
    good = stand_in.run("good", f"until('bad starts'); {DWELL}")
    next_one = stand_in.run("next", after=("good",))
    ended = []
    with pytest.raises(UserError) as error:
        train_all(
            [bad, later, latest, good, next_one],
            Slots([{}, {}]),
            quiet,
            lambda run, done: ended.append((run.name, done)),
        )
    assert str(error.value).startswith(
        "The training bad failed, so later, latest could not be trained: the output is in "
        f"{bad.log}; "
    )
    assert good.results and next_one.results
    assert not {"later starts", "latest starts"} & {*stand_in.events()}
    assert ended == [("bad", False), ("good", True), ("next", True)]


def test_all_that_failed_are_named(stand_in):
    bad = [stand_in.run(name, "raise SystemExit(1)") for name in "ab"]
    with pytest.raises(UserError, match=f"2 trainings failed: .* {bad[0].log}, {bad[1].log};"):
        train_all(bad, Slots([{}]), quiet)


def test_results_that_are_damaged_fail_one_run_alone(stand_in):
    bad = stand_in.run("bad", "open(folder + '/results.json', 'w').write('{')")
    good, said = stand_in.run("good"), []
    with pytest.raises(UserError, match="The training bad failed"):
        train_all([bad, good], Slots([{}]), said.append)
    assert good.results
    assert any("bad/results.json is damaged" in line for line in said)


# ------------------------------------------------------------------ signals

# saves when it is ended
SAVES = """
import signal
def end(*_):
    note('saves')
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
note('ready')
time.sleep(60)
"""
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); note('ready', os.getpid())\n"
)
STUBBORN += "time.sleep(60)"


def is_gone(stand_in):
    """Whether the process that has noted its number is no more."""
    (pid,) = (int(event.split()[-1]) for event in stand_in.events() if " ready " in event)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@contextlib.contextmanager
def signalled(stand_in, *numbers):
    """Signals come to this process: the first when a run is ready, the next half a second later."""

    def send():
        while not any("ready" in event for event in stand_in.events()):
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
            train_all([slow], Slots([{}]), said.append, interrupts=interrupts)
    assert error.value.code == 3
    assert error.value.message == f"Stopped by {number.name}; call again to go on from there."
    assert stand_in.events() == ["slow starts", "slow ready", "slow saves"]
    assert said[-1].startswith("Ending 1 training(s); they save first.")


def test_ctrl_c_once_more_ends_a_training_at_once(stand_in):
    slow = stand_in.run("slow", STUBBORN)
    with signalled(stand_in, signal.SIGINT, signal.SIGINT) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            train_all([slow], Slots([{}]), quiet, interrupts=interrupts)
    assert is_gone(stand_in)


def test_a_training_that_does_not_end_is_killed(stand_in):
    slow = stand_in.run("slow", STUBBORN)
    with signalled(stand_in, signal.SIGTERM, signal.SIGTERM) as interrupts:
        with pytest.raises(Stopped):
            train_all([slow], Slots([{}]), quiet, interrupts=interrupts, patience=0.2)
    assert is_gone(stand_in)


def test_any_exception_ends_the_trainings(stand_in):
    def say(line):
        while len(stand_in.events()) < 2:
            time.sleep(0.05)
        raise ZeroDivisionError

    slow = stand_in.run("slow", "note('ready', os.getpid()); time.sleep(60)")
    with pytest.raises(ZeroDivisionError):
        train_all([slow], Slots([{}]), say)
    assert is_gone(stand_in)


def test_a_training_that_a_signal_stopped_is_told_so(stand_in):
    run, said = stand_in.run("run", "raise SystemExit(3)"), []
    with pytest.raises(UserError, match="The training run failed"):
        train_all([run], Slots([{}]), said.append)
    assert said[-1].startswith("run: was stopped by a signal, log in ")


def test_a_signal_that_finds_nothing_to_end_ends_this():
    with pytest.raises(Stopped, match="3"), Interrupts().taken():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(5)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


# ------------------------------------------------------------------ processes


def test_the_command_is_the_training_command_in_its_slots_environment(stand_in, monkeypatch):
    monkeypatch.setenv("KEPT", "yes")
    keys = ("CUDA_VISIBLE_DEVICES", "KEPT", "DPK_DET_PARENT")
    script = f"""
print("hello")
print("to stderr", file=sys.stderr)
seen = sys.argv[1:], [os.environ[key] for key in {keys}], os.getsid(0) == os.getpid()
json.dump(seen, open("seen", "w"))
finish()
"""
    stand_in.script("new", script)
    run = Run("new", "c.yaml", stand_in.folder / "below" / "new", opts=("SEED", "3"))
    train_all([run], Slots([{"CUDA_VISIBLE_DEVICES": "3"}]), quiet)
    argv, environment, is_leader = json.loads((stand_in.folder / "seen").read_text())
    expected = ["--config-file", "c.yaml", "--resume", "SEED", "3", "OUTPUT_DIR", str(run.folder)]
    assert argv == expected
    assert environment == ["3", "yes", str(os.getpid())]
    assert is_leader  # Ctrl-C at the terminal does not reach it
    assert sorted(run.log.read_text().splitlines()) == ["hello", "to stderr"]


def test_a_slot_is_of_one_training_at_a_time(stand_in):
    note = "note('has', os.environ['GPU'])"
    todo = [stand_in.run(name, f"{note}; {DWELL}; {note}") for name in "abcd"]
    train_all(todo, Slots([{"GPU": "0"}, {"GPU": "1"}]), quiet)
    has = [event.split() for event in stand_in.events() if " has " in event]
    used = {"0": [], "1": []}
    for name, _, gpu in has:
        used[gpu].append(name)
    for names in used.values():  # each has come to its end before the next
        assert len(names) == 4 and names[0] == names[1] and names[2] == names[3]

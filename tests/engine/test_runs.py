"""Experiments of several trainings. The trainings are stand-ins of one line, but for their end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpk_det.engine import runs
from dpk_det.engine.runs import Run, read_metrics, train_all
from dpk_det.errors import UserError

RESULTS = {"results": {"bbox": {"AP": 12.34}}}
FINISH = f"open(folder + '/results.json', 'w').write('{json.dumps(RESULTS)}')"
# it goes on for a while, for others to be started meanwhile
DWELL = "import time; time.sleep(0.5)"


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Runs of lines of Python, which note their start and end; and the processes started."""

    class StandIn:
        scripts: dict[str, str] = {}
        processes: dict[str, subprocess.Popen] = {}
        threads: list[int] = []
        diary = tmp_path / "diary"

        def run(self, name, script=FINISH, after=()):
            self.scripts[name] = script
            return Run(name, "none.yaml", tmp_path / name, after=after)

        def start(self, run, threads):
            run.folder.mkdir()
            self.threads.append(threads)
            code = [
                f"folder, note = {str(run.folder)!r}, lambda what: "
                f"print({run.name!r}, what, file=open({str(self.diary)!r}, 'a'))",
                "note('starts')",
                self.scripts[run.name],
                "note('ends')",
            ]
            process = subprocess.Popen([sys.executable, "-S", "-c", "\n".join(code)])
            self.processes[run.name] = process
            return process

        def events(self):
            return self.diary.read_text().splitlines() if self.diary.exists() else []

    stand_in = StandIn()
    StandIn.scripts, StandIn.processes, StandIn.threads = {}, {}, []
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
    train_all(todo, workers=3, threads=3, report=said.append)  # one is free for the student
    events = stand_in.events()
    assert len(events) == 6
    assert events.index("student starts") > events.index("teacher ends")
    # the plain one has nothing to wait for
    assert events.index("plain starts") < events.index("teacher ends")
    assert stand_in.threads == [3, 3, 3]
    assert "teacher: done, bbox AP 12.3" in said
    assert any(line.startswith("student: started, log in ") for line in said)


def test_no_more_run_at_a_time_than_there_are_workers(stand_in):
    todo = [stand_in.run(name, f"{DWELL}\n{FINISH}") for name in "abc"]
    train_all(todo, workers=1, threads=1, report=lambda line: None)
    expected = [f"{name} {what}" for name in "abc" for what in ("starts", "ends")]
    assert stand_in.events() == expected


def test_what_is_done_is_not_done_again(stand_in, tmp_path):
    done, new = stand_in.run("done"), stand_in.run("new", after=("done",))
    done.folder.mkdir()
    (done.folder / "results.json").write_text(json.dumps(RESULTS))
    said = []
    train_all([done, new], workers=1, threads=1, report=said.append)
    assert said[0] == "done: done before"
    assert stand_in.events() == ["new starts", "new ends"]
    assert new.results == RESULTS


def test_what_is_older_than_a_run_that_it_needs_is_refused(stand_in):
    teacher, student = stand_in.run("teacher"), stand_in.run("student", after=("teacher",))
    for run, seconds in ((student, 1000), (teacher, 2000)):
        run.folder.mkdir()
        (run.folder / "results.json").write_text(json.dumps(RESULTS))
        os.utime(run.folder / "results.json", (seconds, seconds))
    with pytest.raises(UserError, match="student was made before the teacher it needs"):
        train_all([teacher, student], workers=1, threads=1, report=lambda line: None)
    os.utime(student.folder / "results.json", (3000, 3000))
    train_all([teacher, student], workers=1, threads=1, report=lambda line: None)
    assert stand_in.events() == []


# ------------------------------------------------------------------ failures


@pytest.mark.parametrize("script", ["raise SystemExit(1)", f"{FINISH}\nraise SystemExit(2)", ""])
def test_a_failed_run_names_its_log_and_stops_the_rest(stand_in, script):
    # it fails by its status, or because it left no results
    slow = stand_in.run("slow", f"import time; time.sleep(60)\n{FINISH}")
    bad = stand_in.run("bad", script)
    later = stand_in.run("later", after=("bad",))
    start = time.monotonic()
    with pytest.raises(UserError, match=f"The run bad failed: its output is in {bad.log}"):
        train_all([slow, bad, later], workers=2, threads=1, report=lambda line: None)
    assert time.monotonic() - start < 30
    assert stand_in.processes["slow"].returncode not in (None, 0)
    assert "later" not in stand_in.processes


def test_an_interrupt_stops_the_trainings(stand_in):
    def report(line):
        raise KeyboardInterrupt

    slow = stand_in.run("slow", "import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        train_all([slow], workers=1, threads=1, report=report)
    assert stand_in.processes["slow"].returncode not in (None, 0)


# ------------------------------------------------------------------ the configuration


def test_a_finished_training_is_recognised_by_its_configuration(tiny, trained):
    said = []
    train_all([Run("dpk", str(tiny.dpk), trained)], 1, 1, said.append)
    assert said == ["dpk: done before"]


def test_a_folder_of_another_configuration_is_refused(tiny, trained):
    run = Run("dpk", str(tiny.dpk), trained, opts=("SOLVER.BASE_LR", "0.5"))
    with pytest.raises(UserError, match=f"{trained} was made with another configuration than dpk"):
        train_all([run], 1, 1, lambda line: None)


def test_the_command_is_the_training_command_with_its_threads(tmp_path, monkeypatch):
    started = []

    def popen(command, **kwargs):
        started.append((command, kwargs))
        kwargs["stdout"].write("hello\n")

    monkeypatch.setattr(subprocess, "Popen", popen)
    run = Run("r", "c.yaml", tmp_path / "new", opts=("SEED", "3"))
    runs._start(run, 5)
    command, kwargs = started[0]
    expected = ["--config-file", "c.yaml", "--resume", "SEED", "3", "OUTPUT_DIR", str(run.folder)]
    assert command == [sys.executable, "-m", "dpk_det.engine.train", *expected]
    assert kwargs["env"]["OMP_NUM_THREADS"] == kwargs["env"]["MKL_NUM_THREADS"] == "5"
    assert kwargs["stderr"] == subprocess.STDOUT
    assert (tmp_path / "new" / "train.log").read_text() == "hello\n"


# ------------------------------------------------------------------ metrics


def write_metrics(folder: Path, *lines):
    (folder / "metrics.json").write_text("\n".join(map(str, lines)))


def test_metrics_are_in_order_and_the_later_line_of_a_step_counts(tmp_path):
    # stopped after step 60, resumed from a checkpoint at 25
    steps = [(19, 5), (39, 4), (59, 3), (29, 4.8), (39, 4.5), (59, 3.5), (79, 2)]
    write_metrics(
        tmp_path, *(json.dumps({"iteration": i, "total_loss": loss}) for i, loss in steps)
    )
    assert read_metrics(tmp_path) == [
        {"iteration": 19, "total_loss": 5},
        {"iteration": 29, "total_loss": 4.8},
        {"iteration": 39, "total_loss": 4.5},
        {"iteration": 59, "total_loss": 3.5},
        {"iteration": 79, "total_loss": 2},
    ]


def test_lines_of_one_step_are_put_together(tmp_path):
    write_metrics(tmp_path, '{"iteration": 1, "a": 1}', '{"iteration": 1, "bbox/AP": 2}')
    assert read_metrics(tmp_path) == [{"iteration": 1, "a": 1, "bbox/AP": 2}]


@pytest.mark.parametrize("half", ['{"iteration": 2, "a"', '{"iteration": 2, "a": 1.', "{", ""])
def test_a_half_written_last_line_is_left_out(tmp_path, half):
    write_metrics(tmp_path, '{"iteration": 1, "a": 1}', half)
    assert read_metrics(tmp_path) == [{"iteration": 1, "a": 1}]


def test_there_are_no_metrics_before_the_first(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_real_trainings_metrics_can_be_read(trained):
    metrics = read_metrics(trained)
    assert [m["iteration"] for m in metrics if "total_loss" in m] == [2]
    assert "dpk/ratio_p2" in metrics[0]
    assert metrics[-1]["bbox/AP"] > 0


def test_progress_tells_step_loss_and_minutes(tmp_path):
    run = Run("r", "c.yaml", tmp_path)
    assert runs._progress(run) == "r: starting"
    write_metrics(tmp_path, '{"iteration": 99, "total_loss": 1.256, "eta_seconds": 300}')
    assert runs._progress(run) == "r: step 100, loss 1.26, 5 min to go"

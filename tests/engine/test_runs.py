"""Experiments of several trainings. The trainings are stand-ins of one line, but for their end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpk_det.engine import runs
from dpk_det.engine.lock import training_lock
from dpk_det.engine.runs import Run, check_config, make_slots, read_metrics, train_all
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
            run.folder.mkdir()
            self.slots.append(slot)
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


def test_what_was_begun_before_a_run_that_it_needs_does_not_go_on(stand_in):
    teacher, student = stand_in.run("teacher"), stand_in.run("student", after=("teacher",))
    for run, name, seconds in ((student, "config.yaml", 1000), (teacher, "results.json", 2000)):
        run.folder.mkdir()
        (run.folder / name).write_text(json.dumps(RESULTS))
        os.utime(run.folder / name, (seconds, seconds))
    with pytest.raises(UserError, match="student was made before the teacher it needs"):
        runs._check_age(student, [teacher])
    os.utime(student.folder / "config.yaml", (3000, 3000))
    runs._check_age(student, [teacher])


def test_a_folder_is_trained_in_by_one_process_only(tmp_path):
    run = Run("a", "none.yaml", tmp_path / "a")
    with training_lock(run.folder), pytest.raises(UserError, match=r"a is being trained by ano"):
        runs._to_do([run], quiet)
    assert runs._to_do([run], quiet) == [run]  # it is free again


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
        train_all([bad, later, latest, good, next_one], [{}, {}], quiet, ended.append)
    assert str(error.value).startswith(
        "The training bad failed, so later, latest could not be trained: the output is in "
        f"{bad.log}; "
    )
    assert good.results == next_one.results == RESULTS
    assert not {"later", "latest"} & set(stand_in.processes)
    assert [run.name for run in ended] == ["bad", "good", "next"]


def test_all_that_failed_are_named(stand_in):
    bad = [stand_in.run(name, "raise SystemExit(1)") for name in "ab"]
    with pytest.raises(UserError, match=f"2 trainings failed: .* {bad[0].log}, {bad[1].log};"):
        train_all(bad, [{}], quiet)


def test_an_interrupt_stops_the_trainings(stand_in):
    def report(line):
        raise KeyboardInterrupt

    slow = stand_in.run("slow", "import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        train_all([slow], [{}], report)
    assert stand_in.processes["slow"].returncode not in (None, 0)


# ------------------------------------------------------------------ the configuration


def test_a_finished_training_is_recognised_by_its_configuration(tiny, trained):
    said = []
    train_all([Run("dpk", str(tiny.dpk), trained)], [{}], said.append)
    assert said == ["dpk: done before"]


def copy_of(folder, tmp_path, *changes):
    """A folder made with another config."""
    text = (folder / "config.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path


def test_a_folder_of_another_configuration_is_refused(tiny, trained):
    run = Run("dpk", str(tiny.dpk), trained, opts=("SOLVER.BASE_LR", "0.5"))
    with pytest.raises(
        UserError,
        match=rf"{trained} was made with another configuration .* \(SOLVER\.BASE_LR differs\)",
    ):
        train_all([run], [{}], quiet)


def test_a_key_newer_than_the_folder_may_have_its_default_only(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("  LEVELS: []\n", ""))
    check_config(Run("dpk", str(tiny.dpk), folder))
    with pytest.raises(UserError, match=r"DISTILL\.LEVELS differs"):
        check_config(Run("dpk", str(tiny.dpk), folder, opts=("DISTILL.LEVELS", "['p2']")))


def test_a_key_that_is_gone_is_a_difference(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("  LEVELS: []\n", "  LEVELS: []\n  OLD: 1\n"))
    with pytest.raises(UserError, match=r"DISTILL\.OLD differs"):
        check_config(Run("dpk", str(tiny.dpk), folder))


def test_the_keys_of_a_method_count_only_where_it_is_used(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("    TOKEN_STRIDE: 16\n", "    TOKEN_STRIDE: 8\n"))
    with pytest.raises(UserError, match=r"DISTILL\.DPK\.TOKEN_STRIDE differs"):
        check_config(Run("dpk", str(tiny.dpk), folder))
    copy_of(
        folder, tmp_path, ("META_ARCHITECTURE: DistillRCNN", "META_ARCHITECTURE: GeneralizedRCNN")
    )
    check_config(Run("dpk", str(tiny.dpk), folder, ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")))


def test_the_spelling_of_the_teachers_path_is_no_difference(tiny, trained, monkeypatch):
    monkeypatch.chdir(tiny.weights.parent)
    check_config(Run("dpk", str(tiny.dpk), trained, ("DISTILL.TEACHER.WEIGHTS", "teacher.pth")))
    with pytest.raises(UserError, match=r"DISTILL\.TEACHER\.WEIGHTS differs"):
        check_config(Run("dpk", str(tiny.dpk), trained, ("DISTILL.TEACHER.WEIGHTS", "plain.pth")))


def test_a_gpu_that_is_not_here_is_no_difference_to_a_report(tiny, trained, tmp_path):
    folder = copy_of(trained, tmp_path, ("  DEVICE: cpu", "  DEVICE: cuda"))
    run = Run("dpk", str(tiny.dpk), folder)
    check_config(run, any_machine=True)
    with pytest.raises(UserError, match=r"MODEL\.DEVICE differs"):
        check_config(run)


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
    assert kwargs["stderr"] == subprocess.STDOUT
    assert (tmp_path / "new" / "train.log").read_text() == "hello\n"


# ------------------------------------------------------------------ slots


def gpus_of(slots):
    return [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots]


@pytest.fixture
def machine(monkeypatch):
    """``machine(gpus, cores, visible)`` pretends to be one."""

    def pretend(gpus, cores=16, visible=None):
        monkeypatch.setattr(runs.torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(runs.torch.cuda, "device_count", lambda: gpus)
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


def test_a_slot_is_of_one_training_at_a_time(stand_in):
    todo = [stand_in.run(name, f"{DWELL}\n{FINISH}") for name in "abcd"]
    train_all(todo, [{"GPU": "0"}, {"GPU": "1"}], quiet)
    used = [slot["GPU"] for slot in stand_in.slots]
    assert sorted(used[:2]) == sorted(used[2:]) == ["0", "1"]


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


def test_the_time_left_is_as_if_all_took_as_long_as_those_that_ended():
    # 3 wait for 100 s each; two go on, one with 60 s to go and one that is late already
    assert runs._seconds_left([90, 110], 3, [40, 130], 2) == (3 * 100 + 60 + 0) / 2
    assert runs._seconds_left([], 3, [40], 2) is None


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
    assert runs._describe(Run("r", "c.yaml", tmp_path)) == text

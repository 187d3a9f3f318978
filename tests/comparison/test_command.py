"""The comparison: one that is trained, and what happens when trainings fail or are interrupted."""

import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model

from dpk_det.comparison import command as module
from dpk_det.comparison.command import compare, parse_args
from dpk_det.comparison.jobs import Slots, make_slots
from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite
from dpk_det.comparison.suite_configs import load_configs
from dpk_det.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tiny, tmp_path):
    """A suite of tiny trainings: a plain and a distilling student, and a teacher."""
    content = {
        "title": "Tiny",
        "seeds": [1, 2],
        "common": {"SOLVER.MAX_ITER": 2},
        "teachers": {
            # of widths of its own: its weights fit only what is built with its opts
            "big": {
                "config": str(tiny.teacher),
                "opts": {"SOLVER.MAX_ITER": 2, "MODEL.SMALL_RESNET.WIDTHS": [8, 12, 16, 24]},
            }
        },
        "baseline": "plain",
        "methods": {
            "plain": {"title": "plain student", "config": str(tiny.plain)},
            "dpk": {
                "title": "DPK",
                "config": str(tiny.dpk),
                "teacher": "big",
                "opts": {"DISTILL.DPK.WEIGHT": 2.0, "SOLVER.MAX_ITER": 3},
            },
        },
    }

    def write(**changed):
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(content | changed, sort_keys=False))
        return path

    return write


@pytest.fixture
def todo(suite, tmp_path):
    """The trainings of that suite."""
    return plan(read_suite(suite()), tmp_path / "out" / "runs")


@pytest.fixture
def tiny_too(tiny):
    """A second name for the tiny dataset."""
    metadata = dict(MetadataCatalog.data)
    annotations, images = tiny.cfg("plain").DATASETS.JSON.tiny
    register_coco_instances("tiny_too", {}, annotations, images)
    yield
    DatasetCatalog.remove("tiny_too")
    MetadataCatalog.data = metadata


@pytest.fixture
def command_line(capsys):
    """Runs the command in this process; its exit status, and what it printed to both streams."""

    def call(*argv):
        try:
            module.run([str(arg) for arg in argv])
            status = 0
        except SystemExit as e:
            status = e.code
        return status, *capsys.readouterr()

    return call


# ------------------------------------------------------------------ one that is trained


def test_a_comparison_is_trained_reported_and_not_repeated(suite, tmp_path, command_line):
    output = tmp_path / "out"
    argv = (suite(seeds=[2]), "--output", output, "--workers", "2")
    status, printed, _ = command_line(*argv)
    assert status == 0
    assert "(3 of 3 done)" in printed and "| plain student" in printed
    results = json.loads((output / "results.json").read_text())
    assert results["finished"] == results["trainings"] == 3
    for name, steps in (("plain", 2), ("dpk", 3)):
        row = results["methods"][name]
        assert sorted(row["runs"]) == sorted(row["values"]) == ["2"]
        for seed, run in row["runs"].items():
            assert run["folder"] == str(output / "runs" / f"{name}-seed{seed}")
            assert run["iterations"] == row["iterations"] == steps
            assert run["peak_memory_mb"] > 50
            made_with = yaml.safe_load((Path(run["folder"]) / "config.yaml").read_text())
            assert made_with["SEED"] == int(seed)
    dpk, plain = (results["methods"][name]["values"] for name in ("dpk", "plain"))
    assert results["methods"]["dpk"]["gain"]["mean"] == pytest.approx(dpk["2"] - plain["2"])
    assert made_with["DISTILL"]["TEACHER"]["WEIGHTS"] == str(output / "runs/big/model_final.pth")

    report = (output / "report.md").read_text()
    assert report.startswith("# Tiny\n")
    called = shlex.join(["python", "tools/compare.py", *map(str, argv)])
    assert f"    {called}\n" in report
    for name in ("ap.png", "prior.png"):
        assert f"]({name})" in report
        assert (output / name).read_bytes().startswith(b"\x89PNG")

    status, printed, _ = command_line(*argv)  # nothing is left to do
    assert status == 0
    assert printed.count("done before") == 3 and "started" not in printed
    assert (output / "report.md").read_text() == report


def test_figures_that_differ_from_those_kept_are_told_once(suite, tmp_path, command_line):
    kept = tmp_path / "kept"
    argv = (suite(seeds=[2]), "--workers", "2", "--evidence", kept, "--output")
    command_line(*argv, tmp_path / "before")
    for path in (kept / "plain-seed2", kept / "dpk-seed2"):
        shutil.rmtree(path)
    figures = kept / "big" / "results.json"
    content = json.loads(figures.read_text())
    content["results"]["bbox"]["AP"] = 99.0
    figures.write_text(json.dumps(content))
    status, printed, error = command_line(*argv, tmp_path / "after")
    assert status == 0, error
    assert "(3 of 3 done)" in printed
    assert printed.count("remove that folder, and those of the students") == 1


ATTENTION = """
from torch.nn import functional as F
from dpk_det.distill import Distiller, register_distiller


@register_distiller("attention")
class Attention(Distiller):
    def __init__(self, levels, weight=100.0):
        super().__init__(levels)
        self.weight = weight

    def forward(self, student, teacher, targets=None):
        total = 0.0
        for pair in self.pairs(student, teacher):
            maps = (pair.student, pair.teacher)
            one, other = (F.normalize(x.square().mean(1).flatten(1)) for x in maps)
            total = total + (one - other).square().sum(1).mean()
        return {"loss_attention": self.weight * total}
"""


def test_a_method_of_ones_own_is_compared(suite, tiny, tmp_path):
    (tmp_path / "my_method.py").write_text(ATTENTION)
    opts = {"DISTILL.METHODS": ["attention"], "DISTILL.ATTENTION.WEIGHT": 50.0}
    path = suite(
        seeds=[1],
        imports=["my_method"],
        teachers={},
        baseline="attention",
        methods={"attention": {"title": "my own", "config": str(tiny.dpk), "opts": opts}},
    )
    # in a process of its own: the method would be registered in this one for good
    called = subprocess.run(
        [sys.executable, str(ROOT / "tools/compare.py"), str(path), "--output", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert called.returncode == 0, called.stdout + called.stderr
    left = json.loads((tmp_path / "out/results.json").read_text())["methods"]["attention"]
    assert f"| my own | 1       | {left['mean']:.1f}" in (tmp_path / "out/report.md").read_text()
    folder = tmp_path / "out/runs/attention-seed1"
    assert "loss_attention" in (folder / "metrics.json").read_text()
    made_with = yaml.safe_load((folder / "config.yaml").read_text())
    assert made_with["DISTILL"]["ATTENTION"]["WEIGHT"] == 50.0


# ------------------------------------------------------------------ the report as it goes


def test_the_report_is_rewritten_after_each_training(todo, tmp_path, stand_in):
    path, finished = tmp_path / "out/results.json", []

    def say(line):
        if ": done" in line:
            finished.append(json.loads(path.read_text())["finished"] if path.exists() else 0)

    compare(todo, tmp_path / "out", Slots([{}]), "command", say)
    assert finished == [0, 1, 2, 3, 4]  # of those before it
    assert json.loads(path.read_text())["finished"] == 5


def test_a_failed_training_costs_only_those_that_need_it(suite, tmp_path, stand_in, command_line):
    stand_in.script("big", "")  # it leaves no results
    path, output = suite(), tmp_path / "out"
    status, printed, errors = command_line(path, "--output", output)
    assert status == 2
    assert errors == (
        "error: The training big failed, so dpk-seed1, dpk-seed2 could not be trained: the output "
        f"is in {output}/runs/big/train.log; mend what it says and call again.\n"
    )
    assert "big: failed, log in" in printed
    report = (output / "report.md").read_text()
    assert "**2 of 5 trainings are done; failed: big.**" in report
    assert "plain student" in report

    stand_in.script("big", "finish()")  # mended
    status, printed, _ = command_line(path, "--output", output)
    assert status == 0 and printed.count("done before") == 2
    assert "trainings are done" not in (output / "report.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_what_is_finished_before_a_signal_is_reported(
    suite, tmp_path, stand_in, command_line, number
):
    path, output = suite(), tmp_path / "out"
    command_line(path, "--output", output, "--only", "plain", "--workers", "1")
    (output / "report.md").unlink()
    script = f"os.kill(int(os.environ['DPK_DET_PARENT']), {int(number)}); time.sleep(60)"
    stand_in.script("big", script)
    status, _, errors = command_line(path, "--output", output)
    assert status == 3
    assert "2 of 5 trainings are done" in (output / "report.md").read_text()
    assert errors == f"Stopped by {number.name}; call again to go on from there.\n"


# ------------------------------------------------------------------ teachers that are there already


@pytest.fixture
def given(suite, tiny, tmp_path):
    """``given(**changed)``: the suite with a teacher whose weights are given, in a file of its
    own."""
    weights = tmp_path / "given.pth"
    weights.write_bytes(tiny.weights.read_bytes())

    def write(**changed):
        big = {"title": "given", "config": str(tiny.teacher), "weights": str(weights)} | changed
        return suite(seeds=[1], teachers={"big": big})

    return write


def test_a_given_teacher_is_evaluated_once_and_has_a_row(given, tmp_path, stand_in, command_line):
    path, output = given(), tmp_path / "out"
    stand_in.script("big", "train()")
    status, printed, _ = command_line(path, "--output", output)
    assert status == 0 and "big: done, bbox AP " in printed
    stand_in.script("big", "")
    left = json.loads((output / "runs/big/teacher.json").read_text())
    row = json.loads((output / "results.json").read_text())["teachers"]["big"]
    assert row["values"] == {"given": left["results"]["bbox"]["AP"]}
    report = (output / "report.md").read_text()
    assert "- given: not trained here, weights " in report and "evaluated on tiny." in report
    assert f"| given         |         | {row['mean']:.1f}" in report

    _, printed, _ = command_line(path, "--output", output)
    assert "big: done before" in printed and "started" not in printed
    status, _, _ = command_line(path, "--output", output, "--report-only")
    assert status == 0

    os.utime(tmp_path / "given.pth", (1, 1))  # other weights, as far as one can see
    _, printed, _ = command_line(path, "--output", output)
    assert "big: its weights, config or datasets have changed; it is evaluated anew" in printed
    assert "big: started" in printed and not (output / "runs/big/teacher.json").exists()

    (output / "runs/big/teacher.json").write_text(json.dumps(left))
    changed = given(opts={"INPUT.MIN_SIZE_TEST": 32})
    status, _, errors = command_line(changed, "--output", output, "--report-only")
    assert status == 2 and "big/teacher.json is of another teacher than big of" in errors


def test_a_teacher_of_other_classes_is_not_evaluated_but_teaches(
    suite, tiny, tmp_path, stand_in, command_line
):
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", 5]
    weights = tmp_path / "five.pth"
    cfg = tiny.cfg("teacher", *opts)
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    big = {"config": str(tiny.teacher), "weights": str(weights), "opts": dict([opts])}
    path, output = suite(seeds=[1], teachers={"big": big}), tmp_path / "out"
    status, printed, _ = command_line(path, "--output", output)
    assert status == 0 and "big starts" not in stand_in.events()
    assert "big: not evaluated. The teacher " in printed
    assert "- big: neither trained nor evaluated here" in (output / "report.md").read_text()


@pytest.mark.parametrize("content", ["README", ""])
def test_weights_that_are_none_are_told_before_training(given, tmp_path, stand_in, content):
    path = given(weights=str(tmp_path / "README.md"))
    (tmp_path / "README.md").write_text(content)
    with pytest.raises(UserError, match=r"teachers\.big of .* cannot be built: .*README\.md"):
        load_configs(plan(read_suite(path), tmp_path / "runs"), trains=True)


def test_weights_that_start_no_student_are_told_before_training(suite, tiny, tmp_path):
    teachers = {"big": {"config": str(tiny.teacher), "weights": str(tmp_path / "README.md")}}
    path = suite(teachers=teachers, start="big", methods={"plain": {"config": str(tiny.plain)}})
    (tmp_path / "README.md").write_text("no weights")
    with pytest.raises(UserError, match=r"start of .* is no start for methods\.plain: .*README"):
        load_configs(plan(read_suite(path), tmp_path / "runs"), trains=True)


# ------------------------------------------------------------------ several suites


def test_suites_that_share_a_folder_share_what_is_trained(suite, tmp_path, stand_in, command_line):
    path = suite()
    shared = ("--runs", tmp_path / "shared")
    command_line(path, "--output", tmp_path / "a", "--only", "plain", *shared)
    _, printed, _ = command_line(path, "--output", tmp_path / "b", *shared)
    assert "plain-seed1: done before" in printed and "dpk-seed1: done, " in printed


def test_a_report_of_what_is_finished_trains_nothing(suite, tmp_path, stand_in, command_line):
    path, output = suite(), tmp_path / "out"
    status, _, errors = command_line(path, "--output", output, "--report-only")
    assert status == 2 and "nothing to report: no training of" in errors
    command_line(path, "--output", output, "--only", "plain")
    status, printed, _ = command_line(path, "--output", output, "--report-only")
    assert status == 0 and "started" not in printed
    report = (output / "report.md").read_text()
    assert "2 of 5 trainings are done" in report
    assert "--report-only" not in report


def test_a_report_refuses_trainings_of_another_configuration(
    suite, tmp_path, trained, stand_in, command_line
):
    path, output = suite(), tmp_path / "out"
    command_line(path, "--output", output)
    made_with = (trained / "config.yaml").read_text()
    (output / "runs/plain-seed1/config.yaml").write_text(made_with)
    status, _, errors = command_line(path, "--output", output, "--report-only")
    assert status == 2 and "plain-seed1 was made with another configuration" in errors


# ------------------------------------------------------------------ mistakes, before any training


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            {"DISTILL.DPK.WIEGHT": 2},
            r"methods\.plain of .*suite\.yaml cannot be trained: its opts \(or common\) have the "
            r"unknown config key DISTILL\.DPK\.WIEGHT: did you mean DISTILL\.DPK\.WEIGHT\?",
        ),
        ({"SOLVER.MAX_ITER": "many"}, r"methods\.plain of .* cannot be trained: .*MAX_ITER"),
        ({"DATASETS.TRAIN": ["tinny"]}, r"methods\.plain of .* cannot be trained: .*'tinny'"),
    ],
)
def test_a_mistake_in_options_is_told_before_training(suite, tiny, tmp_path, opts, message):
    methods = {"plain": {"config": str(tiny.plain), "opts": opts}}
    todo = plan(read_suite(suite(methods=methods)), tmp_path / "runs")
    with pytest.raises(UserError, match=message):
        compare(todo, tmp_path, Slots(make_slots()), "command")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            {"DISTILL.METHODS": ["fgdd"]},
            r"methods\.dpk of .* no distiller named 'fgdd': did you me",
        ),
        ({"DISTILL.DPK.MASK": "rnd"}, r"methods\.dpk of .* no mask named 'rnd'"),
        ({"DISTILL.DPK.LEVEL_WEIGHTS": [1.0, 2.0]}, None),
    ],
)
def test_a_mistake_in_a_methods_options_is_told_before_its_teacher_is_trained(
    suite, tiny, tmp_path, opts, message
):
    methods = {
        "plain": {"config": str(tiny.plain)},
        "dpk": {"config": str(tiny.dpk), "teacher": "big", "opts": opts},
    }
    todo = plan(read_suite(suite(methods=methods)), tmp_path / "runs")
    if message is None:
        assert set(load_configs(todo, trains=False)) == {"big", "plain", "dpk"}
        return
    with pytest.raises(UserError, match=message):
        load_configs(todo, trains=False)


@pytest.mark.parametrize("extra", [{"teacher": "big"}, {"opts": {"DISTILL.METHODS": ["fgd"]}}])
def test_a_plain_student_is_no_method(suite, tiny, tmp_path, extra):
    methods = {"plain": {"config": str(tiny.plain), **extra}}
    todo = plan(read_suite(suite(methods=methods)), tmp_path / "runs")
    with pytest.raises(UserError, match="GeneralizedRCNN learns from no teacher: choose a config"):
        load_configs(todo, trains=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": "segm/AP"}, r"no metric of methods\.plain of .*suite\.yaml named 'segm/AP'"),
        ({"secondary": "bbox/AP5"}, r"no metric of methods\.plain .* mean 'bbox/AP"),
        (
            {"common": {"DATASETS.TEST": ["tiny", "tiny_too"]}},
            r"bbox/AP does not say which figure of methods\.plain .*: write tiny/bbox/AP or ",
        ),
    ],
)
def test_a_metric_that_will_not_be_measured_is_told_before_training(
    suite, tmp_path, stand_in, changed, message, tiny_too
):
    todo = plan(read_suite(suite(**changed)), tmp_path / "runs")
    with pytest.raises(UserError, match=message):
        compare(todo, tmp_path, Slots(make_slots()), "command")
    assert not (tmp_path / "runs").exists()


def test_of_two_datasets_the_one_named_by_the_metric_is_compared(
    suite, tmp_path, stand_in, tiny_too
):
    changed = {"common": {"DATASETS.TEST": ["tiny", "tiny_too"]}, "metric": "tiny_too/bbox/AP"}
    todo = plan(read_suite(suite(**changed)), tmp_path / "runs", only=["plain"])
    results = {"tiny": {"bbox": {"AP": 1.0}}, "tiny_too": {"bbox": {"AP": 77.0}}}
    for run in todo.runs:
        stand_in.script(run.name, f"finish(results={results})")
    table = compare(todo, tmp_path, Slots(make_slots()), "command")
    assert "| AP on tiny_too " in table and "| 77.0 ± 0.0 " in table
    assert (tmp_path / "ap-on-tiny_too.png").is_file()


def test_a_report_that_cannot_be_written_ends_no_training(suite, tmp_path, stand_in):
    todo = plan(read_suite(suite()), tmp_path / "runs")
    (tmp_path / "report.md").mkdir()
    said = []
    with pytest.raises(UserError, match=r"report\.md could not be written \(Is a directory\)"):
        compare(todo, tmp_path, Slots(make_slots()), "command", said.append)
    assert all(run.results is not None for run in todo.runs)
    assert any("The report could not be written" in line for line in said)


def test_an_absent_config_is_told_with_where_it_is_named(suite, tmp_path):
    path = suite(methods={"plain": {"config": "gone.yaml"}})
    with pytest.raises(
        UserError, match=r"'gone\.yaml' of methods\.plain of .*suite\.yaml is no fi"
    ):
        load_configs(plan(read_suite(path), tmp_path), trains=False)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"weights": "gone.pth"}, r"weights gone\.pth of teachers\.big of .* are no file below"),
        ({"config": "gone.yaml", "weights": ""}, r"teachers\.big of .* cannot be built: .*gone"),
    ],
)
def test_a_teacher_that_is_not_there_is_told_before_training(
    suite, tiny, tmp_path, teacher, message
):
    path = suite(teachers={"big": {"config": str(tiny.teacher)} | teacher})
    with pytest.raises(UserError, match=message):
        load_configs(plan(read_suite(path), tmp_path), trains=True)


def test_options_are_read():
    args = parse_args("s.yaml --seeds 3 4 --only a b --gpus 0 1 --runs r".split())
    assert (args.seeds, args.only, args.gpus, args.runs) == (
        [3, 4],
        ["a", "b"],
        ["0", "1"],
        Path("r"),
    )
    assert (args.workers, args.threads, args.output) == (None, 1, None)


def test_the_tool_ends_a_mistake_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "gone.yaml"])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(ROOT / "tools/compare.py"), run_name="__main__")
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("error: There is no suite gone.yaml: ")

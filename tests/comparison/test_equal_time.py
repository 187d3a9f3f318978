"""Controls of equal time: how long they train, and what the report says of a useless method."""

import json
import os
import signal

import msgspec
import pytest
import yaml

from dpk_det.comparison.command import run
from dpk_det.comparison.equal_time import apart, with_controls
from dpk_det.comparison.jobs import make_slots
from dpk_det.comparison.plan import plan
from dpk_det.comparison.report import report_text
from dpk_det.comparison.suite import read_suite
from dpk_det.comparison.suite_configs import load_configs
from dpk_det.comparison.summary import summarise
from dpk_det.engine.step_time import step_times
from dpk_det.errors import UserError

SLOT = {"OMP_NUM_THREADS": "1"}
SECONDS = {"plain": 0.1, "inherit": 0.101, "dpk": 0.2, "pkd": 0.15}


@pytest.fixture
def write(tiny, tmp_path):
    """``write(equal_time=True)``: a suite, two of whose methods are over ``inherit``."""

    def write(**changed):
        learns = {"config": str(tiny.dpk), "teacher": "big"}
        content = {
            "seeds": [1, 2],
            "common": {"SOLVER.MAX_ITER": 20, "SOLVER.STEPS": [10, 15]},
            "teachers": {"big": {"config": str(tiny.teacher), "weights": str(tiny.weights)}},
            "baseline": "plain",
            "methods": {
                "plain": {"title": "plain student", "config": str(tiny.plain)},
                "inherit": {
                    "config": str(tiny.plain),
                    "teacher": "big",
                    "opts": {"DISTILL.INHERIT": True},
                },
                "dpk": {**learns, "title": "DPK", "baseline": "inherit"},
                "pkd": {**learns, "opts": {"DISTILL.METHODS": ["pkd"]}},
            },
        }
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(content | changed, sort_keys=False))
        return path

    return write


class Clock:
    """Step times that are given: those of a machine are never twice the same."""

    def __init__(self, **seconds):
        self.seconds, self.calls = SECONDS | seconds, 0

    def __call__(self, runs, slot):
        self.calls += 1
        return {name: [self.seconds[name]] * 3 for name in runs}


def test_every_baseline_is_trained_for_the_time_of_the_dearest_method(write, tmp_path):
    suite = with_controls(read_suite(write(equal_time=True)), tmp_path, SLOT, measure=Clock())
    assert list(suite.methods) == [
        *("plain", "plain-as-long-as-dpk", "inherit", "inherit-as-long-as-dpk", "dpk", "pkd")
    ]
    control = suite.methods["plain-as-long-as-dpk"]
    assert control.opts["SOLVER.MAX_ITER"] == 40 and control.opts["SOLVER.STEPS"] == [20, 30]
    assert (control.title, control.baseline) == ("plain student, as long as 'DPK'", "plain")
    # 20 steps times 0.2 / 0.101
    assert suite.methods["inherit-as-long-as-dpk"].opts["SOLVER.MAX_ITER"] == 40
    assert suite.methods["inherit-as-long-as-dpk"].teacher == "big"
    controls = {name: method.control for name, method in suite.methods.items() if method.control}
    assert controls == {
        "inherit": "plain-as-long-as-dpk",
        "dpk": "inherit-as-long-as-dpk",
        "pkd": "plain-as-long-as-dpk",
    }
    runs = plan(suite, tmp_path / "runs").methods["plain-as-long-as-dpk"]
    assert list(runs) == [1, 2] and "40" in runs[1].opts


def test_a_student_that_does_not_distil_is_never_the_dearest(write, tmp_path):
    # two plain steps are equally dear, and differ by what else the machine does
    clock = Clock(inherit=0.25)
    suite = with_controls(read_suite(write(equal_time=True)), tmp_path, SLOT, measure=clock)
    assert suite.methods["plain-as-long-as-dpk"].opts["SOLVER.MAX_ITER"] == 40
    assert not [name for name in suite.methods if name.endswith("as-long-as-inherit")]


def test_each_method_may_have_a_control_of_its_own(write, tmp_path):
    suite = with_controls(read_suite(write(equal_time="each")), tmp_path, SLOT, measure=Clock())
    steps = {
        name: method.opts["SOLVER.MAX_ITER"]
        for name, method in suite.methods.items()
        if "as-long-as" in name
    }
    # inheriting costs next to nothing, so it has none
    assert steps == {"plain-as-long-as-pkd": 30, "inherit-as-long-as-dpk": 40}
    assert suite.methods["pkd"].control == "plain-as-long-as-pkd"
    assert suite.methods["inherit"].control is None


def steps_of_control(write, tmp_path, equal_time=True, seconds=None, **opts):
    """The steps of each control, where methods have these opts of their own."""
    suite = read_suite(write(equal_time=equal_time))
    for name, own in opts.items():
        suite.methods[name].opts.update(own)
    suite = with_controls(suite, tmp_path, SLOT, measure=Clock(**seconds or {}))
    return {
        name: method.opts["SOLVER.MAX_ITER"]
        for name, method in suite.methods.items()
        if "as-long-as" in name
    }


def test_a_method_with_more_steps_gives_its_control_more(write, tmp_path):
    longer = {"SOLVER.MAX_ITER": 60}
    steps = steps_of_control(write, tmp_path, dpk=longer)
    assert steps == {
        "plain-as-long-as-dpk": 120,
        "inherit-as-long-as-dpk": round(60 * 0.2 / 0.101),
    }


def test_the_dearest_method_is_the_one_whose_training_takes_longest(write, tmp_path):
    steps = steps_of_control(write, tmp_path, pkd={"SOLVER.MAX_ITER": 80})
    assert steps["plain-as-long-as-pkd"] == 120  # a step of DPK is dearer, but it has 20 of them
    assert "plain-as-long-as-dpk" not in steps


def test_a_method_that_takes_no_longer_than_its_baseline_has_no_control(write, tmp_path):
    few = {"SOLVER.MAX_ITER": 10}
    steps = steps_of_control(write, tmp_path, "each", dpk=few, pkd=few)
    assert steps == {}


def test_steps_after_the_end_of_distillation_cost_as_much_as_plain_ones(write, tmp_path):
    steps = steps_of_control(
        write, tmp_path, "each", pkd={"DISTILL.STOP_AT": 0.5}, dpk={"DISTILL.STOP_AT": 0.0}
    )
    assert steps == {"plain-as-long-as-pkd": 25}


def test_a_control_that_stops_distilling_itself_trains_for_the_same_time(write, tmp_path):
    suite = read_suite(write(equal_time="each"))
    pkd = suite.methods["pkd"]
    pkd.opts["DISTILL.STOP_AT"] = 0.5  # 20 steps cost 25 plain ones
    dear = msgspec.structs.replace(pkd, name="dear", title="dear", baseline="pkd")
    dear = msgspec.structs.replace(dear, opts=pkd.opts | {"DISTILL.STOP_AT": 1.0})
    suite.methods["dear"] = dear  # 20 steps cost 50 plain ones
    suite = with_controls(suite, tmp_path, SLOT, measure=Clock(dear=0.25))
    assert suite.methods["pkd-as-long-as-dear"].opts["SOLVER.MAX_ITER"] == 40
    todo = plan(suite, tmp_path / "runs")
    rows = summarise(todo, load_configs(todo, trains=False), "command")["methods"]
    seconds = {name: row["training_seconds"] for name, row in rows.items()}
    assert seconds["pkd"] == pytest.approx(2.5)
    assert seconds["dear"] == pytest.approx(5) == seconds["pkd-as-long-as-dear"]


def test_what_was_measured_and_what_follows_can_be_read(write, tmp_path):
    with_controls(read_suite(write(equal_time=True)), tmp_path, SLOT, measure=Clock())
    found = json.loads((tmp_path / "step_times.json").read_text())
    assert found["seconds"]["dpk"] == {"median": 0.2, "q1": 0.2, "q3": 0.2}
    assert found["ratios"]["dpk"]["plain"] == pytest.approx(2)
    control = found["controls"]["plain-as-long-as-dpk"]
    assert (control["baseline"], control["as_long_as"]) == ("plain", "dpk")
    assert control["opts"]["SOLVER.MAX_ITER"] == 40
    assert found["machine"]["torch"]


def test_it_is_measured_once_and_anew_where_a_config_changes(write, tmp_path):
    clock = Clock()
    first = with_controls(read_suite(write(equal_time=True)), tmp_path, SLOT, measure=clock)
    clock.seconds["dpk"] = 9.0
    again = with_controls(read_suite(write(equal_time=True)), tmp_path, SLOT, measure=clock)
    assert clock.calls == 1 and again == first
    changed = write(equal_time=True, common={"SOLVER.MAX_ITER": 10})
    with_controls(read_suite(changed), tmp_path, SLOT, measure=clock)
    assert clock.calls == 2
    whole = (tmp_path / "step_times.json").read_text()
    lacks = {key: value for key, value in json.loads(whole).items() if key != "ratios"}
    for calls, damaged in enumerate(("{", "[]", json.dumps(lacks)), 3):
        (tmp_path / "step_times.json").write_text(damaged)
        with_controls(read_suite(changed), tmp_path, SLOT, measure=clock)
        assert clock.calls == calls


def test_a_report_alone_measures_nothing(write, tmp_path):
    suite, clock = read_suite(write(equal_time=True)), Clock()
    assert with_controls(suite, tmp_path, None, measure=clock) is suite and not clock.calls
    with_controls(suite, tmp_path, SLOT, measure=clock)
    assert "plain-as-long-as-dpk" in with_controls(suite, tmp_path, None, measure=clock).methods
    assert clock.calls == 1


def test_a_suite_that_does_not_ask_has_no_controls(write, tmp_path):
    suite, clock = read_suite(write()), Clock()
    assert with_controls(suite, tmp_path, SLOT, measure=clock) is suite and not clock.calls


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"equal_time": "all"}, r"^equal_time of .* is 'all': write True, False or each"),
        ({"step_seconds": {}}, "no key in .* named 'step_seconds'"),
    ],
)
def test_what_cannot_be_meant_is_refused(write, changed, message):
    with pytest.raises(UserError, match=message):
        read_suite(write(**changed))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ({"DATASETS.TRAIN": ["none_such"]}, "none_such"),
        ({"DISTILL.DPK.WIDTH": 30}, r"methods\.dpk .* cannot be trained"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(write, tmp_path, opts, message):
    suite, clock = read_suite(write(equal_time=True)), Clock()
    suite.methods["dpk"].opts.update(opts)
    with pytest.raises(UserError, match=message):
        with_controls(suite, tmp_path, SLOT, measure=clock)
    assert not clock.calls


def die(configs):
    os.kill(os.getpid(), signal.SIGKILL)


def test_measuring_that_is_killed_is_told(write, tmp_path):
    runs = {"plain": plan(read_suite(write()), tmp_path).methods["plain"][1]}
    with pytest.raises(UserError, match="measures plain was killed"):
        apart(die, runs, SLOT)


def test_step_times_are_those_of_real_steps(write, tmp_path):
    suite = read_suite(write())
    runs = {name: each[1] for name, each in plan(suite, tmp_path).methods.items()}
    taken = apart(step_times, {name: runs[name] for name in ("plain", "dpk")}, make_slots(1)[0])
    assert {name: len(seconds) for name, seconds in taken.items()} == {"plain": 30, "dpk": 30}
    assert all(x > 0 for seconds in taken.values() for x in seconds)


def test_a_gain_that_time_explains_is_gone_at_equal_time(write, tmp_path, finish):
    suite = with_controls(read_suite(write(equal_time=True)), tmp_path, SLOT, measure=Clock())
    todo = plan(suite, tmp_path / "runs", seeds=[1, 2, 3, 4])
    figures = {  # a student that trains longer reaches what DPK and PKD reach
        "plain": [30.0, 31.0, 29.0, 30.5],
        "plain-as-long-as-dpk": [33.1, 34.2, 31.7, 33.4],
        "inherit": [33.0, 34.0, 32.0, 33.5],
        "inherit-as-long-as-dpk": [35.0, 36.0, 34.5, 35.5],
        "dpk": [35.2, 35.7, 34.6, 35.4],
        "pkd": [33.2, 33.9, 32.0, 33.5],
    }
    for name, values in figures.items():
        for seed, value in enumerate(values, 1):
            steps = 40 if "as-long-as" in name else 20
            finish(todo.methods[name][seed], value, iterations=steps)
    summary = summarise(todo, load_configs(todo, trains=False), "command")
    for name in ("dpk", "pkd"):
        row = summary["methods"][name]
        assert row["gain"]["interval"][0] > 0 and row["gain"]["holm"] < 0.05
        low, high = row["gain_at_equal_time"]["interval"]
        assert low < 0 < high and row["gain_at_equal_time"]["holm"] > 0.2
    assert summary["methods"]["dpk"]["gain_at_equal_time"]["mean"] == pytest.approx(-0.025)
    assert summary["methods"]["dpk"]["training_seconds"] == pytest.approx(20 * 0.2)
    assert summary["methods"]["plain-as-long-as-dpk"]["training_seconds"] == pytest.approx(4)
    assert summary["methods"]["dpk"]["relative_seconds"] == pytest.approx(2)  # not the trainings'
    assert "side by side before the trainings" in report_text(summary, {})


def test_real_trainings_are_compared_with_a_control(write, tiny, tmp_path, monkeypatch, capfd):
    """DPK with a weight of 0 costs what it costs, and does nothing."""
    monkeypatch.chdir(tmp_path)
    methods = {
        "plain": {"title": "plain student", "config": str(tiny.plain)},
        "nothing": {
            "config": str(tiny.dpk),
            "teacher": "big",
            "opts": {"DISTILL.DPK.WEIGHT": 0.0},
        },
    }
    path = write(equal_time=True, methods=methods, common={"SOLVER.MAX_ITER": 3}, seeds=[1])
    run([str(path), "--output", "out"])
    out = capfd.readouterr().out
    assert "Measuring a step of plain, nothing, side by side" in out
    results = json.loads((tmp_path / "out/results.json").read_text())["methods"]
    control, nothing = results["plain-as-long-as-nothing"], results["nothing"]
    assert control["iterations"] > results["plain"]["iterations"] == 3
    assert nothing["control"] == "plain-as-long-as-nothing"
    gain = nothing["values"]["1"] - control["values"]["1"]
    assert nothing["gain_at_equal_time"]["mean"] == pytest.approx(gain)
    assert nothing["training_seconds"] == pytest.approx(control["training_seconds"], rel=0.35)
    report = (tmp_path / "out/report.md").read_text()
    assert "gain at equal time" in report and (tmp_path / "out/time.png").is_file()

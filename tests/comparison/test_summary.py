"""The numbers of a comparison, against closed forms, a printed table and numpy."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg

from dpk_det import add_dpk_config
from dpk_det.comparison.plan import plan
from dpk_det.comparison.suite import read_suite
from dpk_det.comparison.summary import paired_gain, summarise
from dpk_det.errors import UserError

SUITE = """
seeds: [1, 2, 3]
teachers: {big: {title: the teacher, config: t.yaml}, given: {config: z.yaml, weights: ""}}
baseline: plain
methods:
  plain: {config: p.yaml}
  kd: {config: k.yaml, teacher: big, opts: {SOLVER.MAX_ITER: 5}}
  dpk: {config: d.yaml, teacher: big, baseline: kd}
"""


@pytest.fixture
def todo(tmp_path):
    """The trainings of three methods under a teacher, none of them done."""
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return plan(read_suite(path), tmp_path / "runs")


def summary_of(todo, failed=()):
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 30, 4
    return summarise(todo, dict.fromkeys(todo.rows, cfg), "command", failed)


def strict_json(summary):
    """What a reader that knows no NaN makes of it."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(json.dumps(summary), parse_constant=refuse)


# ------------------------------------------------------------------ gain and p


def with_differences(differences):
    theirs = {seed: 10.0 + seed**2 for seed in range(len(differences))}
    return {seed: theirs[seed] + d for seed, d in enumerate(differences)}, theirs


@pytest.mark.parametrize(
    ("t", "n", "p"),
    # critical values of Student's t, two-sided, as printed in tables: n - 1 degrees of freedom
    [(12.7062, 2, 0.05), (4.30265, 3, 0.05), (3.18245, 4, 0.05), (5.84091, 4, 0.01)],
)
def test_p_is_that_of_the_table_of_t(t, n, p):
    pattern = np.random.default_rng(0).normal(size=n)
    pattern = (pattern - pattern.mean()) / pattern.std(ddof=1)
    differences = pattern + t / math.sqrt(n)  # mean / (deviation / sqrt(n)) is t
    gain = paired_gain(*with_differences(differences))
    assert gain["p"] == pytest.approx(p, rel=1e-4)
    assert paired_gain(*with_differences(-differences))["p"] == pytest.approx(p, rel=1e-4)
    assert gain["mean"] == pytest.approx(np.mean(differences))
    assert gain["sd"] == pytest.approx(np.std(differences, ddof=1))


def test_p_of_two_and_three_seeds_has_a_closed_form():
    two, three = [1.0, 2.5], [1.0, 2.5, -0.3]
    ts = [np.mean(d) / (np.std(d, ddof=1) / math.sqrt(len(d))) for d in (two, three)]
    expected = [1 - 2 * math.atan(ts[0]) / math.pi, 1 - ts[1] / math.sqrt(2 + ts[1] ** 2)]
    for differences, p in zip((two, three), expected, strict=True):
        assert paired_gain(*with_differences(differences))["p"] == pytest.approx(p)


def test_only_seeds_that_both_have_are_paired():
    gain = paired_gain({1: 30.0, 2: 32.0, 4: 99.0}, {2: 31.0, 1: 28.0, 3: 0.0})
    assert gain["seeds"] == [1, 2]
    assert (gain["mean"], gain["sd"]) == (1.5, pytest.approx(math.sqrt(0.5)))
    assert paired_gain({1: 30.0}, {2: 31.0}) is None


@pytest.mark.parametrize("differences", [[2.0], [2.0, 2.0], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_without_a_spread_there_is_no_p_nor_nan(differences):
    gain = paired_gain(*with_differences(differences))
    assert gain["p"] is None
    assert gain["mean"] == pytest.approx(differences[0])
    assert strict_json(gain)["sd"] == (None if len(differences) == 1 else pytest.approx(0))


# ------------------------------------------------------------------ rows


def test_a_method_has_figures_over_its_finished_seeds(todo, finish):
    finish(todo.teachers["big"], 50.0)
    aps, seconds, memory = [30.0, 31.5, 28.0], [0.6, 0.1, 0.2], [100.0, 400.0, 300.0]
    for seed in (1, 2, 3):
        finish(
            todo.methods["plain"][seed],
            aps[seed - 1],
            seconds_per_step=seconds[seed - 1],
            peak_memory_mb=memory[seed - 1],
        )
    finish(todo.methods["kd"][1], 33.0, seconds_per_step=0.5, peak_memory_mb=450.0)
    finish(todo.methods["dpk"][2], 35.0)
    summary = strict_json(summary_of(todo, failed=["dpk-seed1"]))
    plain, kd, dpk = (summary["methods"][name] for name in ("plain", "kd", "dpk"))

    assert plain["values"] == {"1": 30.0, "2": 31.5, "3": 28.0}
    assert plain["mean"] == pytest.approx(np.mean(aps))
    assert plain["sd"] == pytest.approx(np.std(aps, ddof=1))
    assert plain["secondary_mean"] == pytest.approx(np.mean(aps) + 20)
    assert (plain["seconds_per_step"], plain["peak_memory_mb"]) == (0.2, 300.0)
    assert (plain["relative_seconds"], plain["relative_memory"], plain["gain"]) == (1, 1, None)
    assert (kd["mean"], kd["sd"]) == (33.0, None)
    assert (kd["relative_seconds"], kd["relative_memory"]) == (2.5, 1.5)
    wanted = {"seeds": [1], "mean": 3.0, "sd": None, "interval": None, "p": None, "holm": None}
    assert kd["gain"] == wanted and kd["gain_at_equal_time"] is None
    assert kd["opts"] == {"SOLVER.MAX_ITER": 5}
    assert (dpk["baseline"], dpk["gain"]) == ("kd", None)  # no seed in common
    assert kd["runs"]["1"]["folder"] == str(todo.methods["kd"][1].folder)
    assert kd["runs"]["1"]["results"]["bbox"]["AP"] == 33.0
    assert summary["teachers"]["big"]["values"] == {"1": 50.0}
    assert "given" not in summary["teachers"] and summary["given_teachers"] == {"given": ""}
    assert (summary["trainings"], summary["finished"], summary["failed"]) == (10, 6, ["dpk-seed1"])
    assert len(summary["machines"]) == 1  # all the same


def test_the_steps_of_a_row_are_those_that_were_made(todo, finish):
    rows = summary_of(todo)["methods"]
    assert rows["plain"]["iterations"] == 30 and rows["plain"]["training_seconds"] is None
    for seed, steps in ((1, 12), (2, 17)):
        finish(todo.methods["plain"][seed], 30.0, iterations=steps, ended_early=True)
    plain = summary_of(todo)["methods"]["plain"]
    assert plain["iterations"] == 14 and plain["training_seconds"] == pytest.approx(14 * 0.1)


def test_steps_are_counted_for_the_processes_that_train(todo, finish):
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE = 30, 4, 2
    add_dpk_config(cfg)
    finish(todo.methods["plain"][1], 30.0, iterations=60)
    rows = summarise(todo, dict.fromkeys(todo.rows, cfg), "command")["methods"]
    for name in ("plain", "kd"):  # of kd no training is done
        assert (rows[name]["iterations"], rows[name]["images_per_step"]) == (60, 2)


@pytest.mark.parametrize(
    ("stop", "made", "seconds"),
    # the student alone takes 0.1 seconds a step
    [(1.0, 30, 9.0), (0.5, 30, 15 * 0.3 + 15 * 0.1), (0.5, 20, 15 * 0.3 + 5 * 0.1), (0.5, 9, 2.7)],
)
def test_steps_after_the_end_of_distillation_take_a_plain_students_time(
    todo, finish, tiny, stop, made, seconds
):
    configs = dict.fromkeys(todo.rows, tiny.cfg("plain", "SOLVER.MAX_ITER", 30))
    configs["kd"] = tiny.cfg("dpk", "SOLVER.MAX_ITER", 30, "DISTILL.STOP_AT", stop)
    finish(todo.methods["plain"][1], 20.0)
    finish(todo.methods["kd"][1], 30.0, seconds_per_step=0.3, iterations=made)
    kd = summarise(todo, configs, "command")["methods"]["kd"]
    assert kd["training_seconds"] == pytest.approx(seconds)


def test_a_median_of_plain_steps_does_not_tell_how_long_distilling_took(todo, finish, tiny):
    configs = dict.fromkeys(todo.rows, tiny.cfg("dpk", "DISTILL.STOP_AT", 0.4))
    finish(todo.methods["kd"][1], 30.0)
    assert summarise(todo, configs, "command")["methods"]["kd"]["training_seconds"] is None


def test_what_could_not_be_measured_is_left_out_of_the_mean(todo, finish):
    finish(todo.methods["plain"][1], 30.0)
    finish(todo.methods["plain"][2], None)
    plain = summary_of(todo)["methods"]["plain"]
    assert (plain["values"], plain["mean"], plain["sd"]) == ({1: 30.0}, 30.0, None)


def test_results_of_older_runs_lack_memory_and_machine(todo, finish):
    run = todo.methods["plain"][1]
    finish(run, 30.0, seconds_per_step=None)
    path = run.folder / "results.json"
    results = json.loads(path.read_text())
    del results["peak_memory_mb"], results["machine"]
    path.write_text(json.dumps(results))
    summary = summary_of(todo)
    assert summary["machines"] == []
    assert summary["methods"]["plain"]["relative_memory"] is None
    assert summary["methods"]["plain"]["relative_seconds"] is None


def test_another_metric_can_be_compared(tmp_path, finish):
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE + "metric: classification/top1\nsecondary: classification/top5\n")
    todo = plan(read_suite(path), tmp_path / "runs")
    results = {"classification": {"top1": 71.0, "top5": 92.0}}
    finish(todo.methods["plain"][1], 0.0, results=results)
    plain = summary_of(todo)["methods"]["plain"]
    assert (plain["mean"], plain["secondary_mean"]) == (71.0, 92.0)


def test_a_metric_that_was_not_measured_is_answered_with_the_nearest(todo, finish):
    finish(todo.methods["plain"][1], 0.0, results={"segm": {"AP": 1.0}})
    with pytest.raises(
        UserError, match=r"no metric in .*/plain-seed1/results\.json named 'bbox/AP'"
    ):
        summary_of(todo)


def test_a_baseline_that_is_left_out_leaves_the_gain_blank(tmp_path, finish):
    (tmp_path / "suite.yaml").write_text(SUITE)
    todo = plan(read_suite(Path(tmp_path / "suite.yaml")), tmp_path / "runs", only=["dpk"])
    finish(todo.methods["dpk"][1], 30.0)
    dpk = summary_of(todo)["methods"]["dpk"]
    assert (dpk["gain"], dpk["relative_seconds"]) == (None, None)

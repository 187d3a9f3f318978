"""Doubts name what makes a comparison mean little, and are silent otherwise."""

import html
import json

import pytest

from dpk_det.comparison.plan import plan
from dpk_det.comparison.report_files import write_report
from dpk_det.comparison.suite import read_suite

SUITE = """
teachers: {{big: {{title: the teacher, config: "{tiny.teacher}"}}}}
baseline: plain
methods:
  plain: {{title: plain student, config: "{tiny.plain}"}}
  long: {{title: trained longer, config: "{tiny.plain}", baseline: plain}}
  dpk: {{title: DPK, config: "{tiny.dpk}", teacher: big, control: {control}, opts: {{}}}}
"""


@pytest.fixture
def report(tiny, tmp_path, finish):
    """``report(teacher, plain, shares)`` finishes three runs and returns the doubts."""

    def make(teacher, plain, shares=(), control="null", dpk=0.1, long=None, ended_early=False):
        (tmp_path / "suite.yaml").write_text(SUITE.format(tiny=tiny, control=control))
        todo = plan_of(tmp_path)
        seconds = {"big": 0.1, "plain": 0.1, "dpk": dpk, "long": long}
        aps = {"big": teacher, "plain": plain, "dpk": 20.0}
        aps |= {"long": 15.0} if control != "null" else {}
        for name, ap in aps.items():
            if ap is not None:
                (run,) = todo.rows[name].values()
                early = ended_early and name == "long"
                finish(run, ap, seconds_per_step=seconds[name], ended_early=early)
        lines = [{"iteration": i, "dpk/grad_share": x} for i, x in enumerate(shares)]
        folder = next(iter(todo.rows["dpk"].values())).folder
        (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
        configs = {"big": tiny.cfg("teacher"), "plain": tiny.cfg("plain"), "dpk": tiny.cfg("dpk")}
        configs["long"] = configs["plain"]
        write_report(todo, configs, tmp_path / "out", "a command", [])
        page = html.unescape((tmp_path / "out" / "report.html").read_text())
        doubts = json.loads((tmp_path / "out" / "results.json").read_text())["doubts"]
        text = (tmp_path / "out" / "report.md").read_text()
        assert all(f"**{x}**" in text and f'class="warn">{x}<' in page for x in doubts)
        return doubts

    return make


def plan_of(folder):
    return plan(read_suite(folder / "suite.yaml"), folder / "out" / "runs")


@pytest.mark.parametrize("plain", [10.0, 30.0, None])
def test_a_teacher_that_knows_more_is_no_doubt(report, plain):
    assert report(30.1, plain) == []


@pytest.mark.parametrize("teacher", [0.0, 9.5, 10.0])
def test_a_teacher_that_knows_no_more_than_a_plain_student(report, teacher):
    (doubt,) = report(teacher, 10.0)
    assert doubt == (
        f"'the teacher' has {teacher} AP, no more than 'plain student' (10.0), so students have "
        "nothing to learn from it: train it for longer or on more images."
    )


def short_control(report, **times):
    return report(30.0, 10.0, control="long", **times)


def test_a_control_of_its_own_that_is_short_of_time(report):
    (doubt,) = short_control(report, dpk=0.3, long=0.2)
    assert doubt == (
        "'trained longer' trained for 67 % of the time of 'DPK', whose control it is, so that gain "
        "at equal time is too high: raise SOLVER.MAX_ITER of 'trained longer', unless other load "
        "made the difference."
    )


@pytest.mark.parametrize("seconds", [0.295, 0.5, None])
def test_a_control_that_has_the_time_or_an_unknown_one_is_no_doubt(report, seconds):
    assert short_control(report, dpk=0.3, long=seconds) == []


def test_a_control_that_ended_by_itself_needs_no_more_steps(report):
    assert short_control(report, dpk=0.3, long=0.2, ended_early=True) == []


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.01, 0.02, 9.0), "is 0.02 times that of the student's own losses: raise its weight"),
        ((1.0, 70.0, 80.0), "is 70 times that of the student's own losses: lower its weight"),
        ((0.01, 0.1, 60.0), None),
        ((0.01, 50.0, 60.0), None),
    ],
)
def test_a_gradient_that_is_far_too_weak_or_strong(report, shares, said):
    found = report(30.0, 10.0, shares)
    if said is None:
        assert found == []
    else:
        assert len(found) == 1 and "In 'DPK', the gradient of dpk " in found[0] and said in found[0]
        assert "DISTILL.DPK" in found[0]

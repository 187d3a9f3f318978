"""The ranking of teachers: trials of tiny students, made-up figures, mistakes."""

import json
import signal

import pytest
import torch
import yaml

from dpk_det.comparison import teachers as module
from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import make_slots
from dpk_det.comparison.suite import read_suite
from dpk_det.comparison.teachers import Candidate, foretold, rank_teachers, ranking_table, run
from dpk_det.engine.signals import Stopped
from dpk_det.errors import UserError


@pytest.fixture
def write(tiny, tmp_path):
    """A suite with a student under three teachers of random weights."""

    def write(**changed):
        paths = {"one": tiny.weights}
        for name, seed in (("two", 8), ("three", 9)):
            paths[name] = tmp_path / f"{name}.pth"
            torch.save({"model": tiny.build("teacher", seed=seed).state_dict()}, paths[name])
        teachers = {
            name: {"title": f"teacher {name}", "config": str(tiny.teacher), "weights": str(path)}
            for name, path in paths.items()
        }
        learners = {f"from-{name}": {"config": str(tiny.dpk), "teacher": name} for name in paths}
        content = {
            "common": {"SOLVER.MAX_ITER": 8, "SOLVER.STEPS": []},
            "teachers": teachers,
            "baseline": "plain",
            "methods": {"plain": {"config": str(tiny.plain)}, **learners},
        }
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(content | changed, sort_keys=False))
        return path

    return write


@pytest.fixture
def looked_at(monkeypatch):
    """Nothing is measured before the trials, which takes processes of its own."""

    def apart(look, runs, slot):
        return {name: [1.0] if look is module.step_times else {"p2": 0.5} for name in runs}

    monkeypatch.setattr(module, "apart", apart)


def test_teachers_are_looked_at_and_tried(write, tmp_path, capsys):
    arguments = [str(write()), "--output", str(tmp_path / "out"), "--share", "0.25"]
    full = tmp_path / "results.json"
    means = {"from-one": 3.0, "from-two": 2.0, "from-three": 1.0, "plain": 0.5}
    full.write_text(json.dumps({"methods": {n: {"mean": x} for n, x in means.items()}}))
    run([*arguments, "--full", str(full)])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "teachers.json").read_bytes())
    ranking = found["ranking"]
    assert {x["method"] for x in ranking} == {"from-one", "from-two", "from-three"}
    assert [[*x["trials"]] for x in ranking] == [["2", "4"], ["2", "4"], ["2"]]
    for x in ranking:
        assert x["own"] is not None and 0 < x["gap"] <= 2 and x["cost"] > 0
    assert set(found["foretold"]) <= {"own", "gap", "cost", "rank"} and "rank" in found["foretold"]
    assert "AP after 2 steps" in printed and "Rank correlation" in printed
    before = sorted((tmp_path / "out" / "runs").iterdir())
    run(arguments)  # nothing is trained again
    assert "started" not in capsys.readouterr().out
    assert sorted((tmp_path / "out" / "runs").iterdir()) == before


def test_a_trial_that_diverges_is_the_worst(write, tmp_path, looked_at):
    path = write()
    content = yaml.safe_load(path.read_text())
    del content["methods"]["from-three"], content["teachers"]["three"]
    content["methods"]["from-one"]["opts"] = {"SOLVER.BASE_LR": 1e9, "SOLVER.WARMUP_ITERS": 0}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    ranking = rank_teachers(read_suite(path), tmp_path / "out", make_slots(1), share=0.5)
    assert [x.method for x in ranking] == ["from-two", "from-one"]
    assert ranking[1].trials == {4: None} and ranking[0].trials[4] is not None


def test_a_signal_ends_the_trials(write, tmp_path, looked_at):
    interrupts = Interrupts()
    path = write()
    content = yaml.safe_load(path.read_text())
    del content["methods"]["from-three"], content["teachers"]["three"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))

    def say(line):
        if "-steps-seed101: started" in line:
            interrupts.asked = signal.SIGTERM

    with pytest.raises(Stopped):
        rank_teachers(
            read_suite(path), tmp_path, make_slots(1), share=0.25, say=say, interrupts=interrupts
        )


def test_two_methods_under_one_teacher_are_told_apart_by_only(write, tmp_path):
    path = write()
    content = yaml.safe_load(path.read_text())
    content["methods"]["also-one"] = {**content["methods"]["from-one"], "title": "also"}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=r"learn from one: say by --only"):
        rank_teachers(read_suite(path), tmp_path, [{}])
    with pytest.raises(UserError, match=r"has 1 method\(s\) with a teacher"):
        rank_teachers(read_suite(path), tmp_path, [{}], only=["also-one"])
    with pytest.raises(UserError, match=r"no method .*other"):
        rank_teachers(read_suite(path), tmp_path, [{}], only=["other"])


def made_up():
    return [
        Candidate("c", "large", own=70.0, gap=0.5, cost=2.0, trials={10: 4.0, 20: 9.0}),
        Candidate("b", "medium", own=75.0, gap=0.7, cost=1.5, trials={10: 5.0, 20: 8.0}),
        Candidate("a", "small", own=60.0, gap=0.9, cost=1.1, trials={10: 1.0}),
    ]


def test_rank_correlations_are_those_by_hand():
    found = foretold(made_up(), {"a": 1.0, "b": 2.0, "c": 3.0})
    # 1 - 6 sum(d^2) / (n (n^2 - 1)), n = 3: own has two places exchanged, d^2 = 1 + 1
    assert found == pytest.approx({"own": 0.5, "gap": 1.0, "cost": 1.0, "rank": 1.0})
    assert foretold(made_up(), {"a": 1.0, "b": 2.0}) == {}


def test_the_table_has_the_best_first_and_says_who_was_not_tried_on():
    lines = ranking_table(made_up(), "AP").splitlines()
    assert [x.strip() for x in lines[2].split("|")[1:-1]] == [
        *("1", "large", "c", "70.0", "0.500", "2.00", "4.0", "9.0")
    ]
    assert [x.strip() for x in lines[4].split("|")[1:-1]][-2:] == ["1.0", ""]


def test_who_was_tried_longer_is_before_who_was_better_early():
    long, short = made_up()[0], made_up()[2]
    short.trials = {10: 50.0}
    assert long.rank > short.rank
    lost = Candidate("d", "diverged", trials={10: None})
    assert short.rank > lost.rank


@pytest.mark.parametrize("share", ["0", "2"])
def test_a_share_that_cannot_be_one_is_told(write, share, capsys):
    with pytest.raises(SystemExit):
        run([str(write()), "--share", share])
    assert f"--share is {float(share)}" in capsys.readouterr().err


def test_full_results_that_are_none_are_told(write, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run([str(write()), "--full", str(tmp_path / "absent.json")])
    assert "is no results.json of a comparison" in capsys.readouterr().err
    (tmp_path / "list.json").write_text('{"methods": []}')
    with pytest.raises(SystemExit):
        run([str(write()), "--full", str(tmp_path / "list.json")])
    assert "is no results.json of a comparison" in capsys.readouterr().err

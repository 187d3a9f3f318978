"""Tuning: the search on made-up problems, mistakes in the node, and trainings of tiny detectors."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
import yaml

from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import make_slots
from dpk_det.comparison.plan import plan
from dpk_det.comparison.run import Run
from dpk_det.comparison.suite import read_suite
from dpk_det.comparison.suite_configs import load_configs
from dpk_det.comparison.tuning import search as search_module
from dpk_det.comparison.tuning.command import run, tune
from dpk_det.comparison.tuning.search import Search
from dpk_det.comparison.tuning.space import Choices, Range
from dpk_det.comparison.tuning.trials import Trainings
from dpk_det.engine.signals import Stopped
from dpk_det.engine.trainer import RESULTS
from dpk_det.errors import UserError

ROOT = Path(__file__).parents[3]


def quiet(line):
    """Takes the progress and says nothing."""


@pytest.fixture
def search(tmp_path):
    """Makes a search of a made-up problem; those of one storage share it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def make(space, trials=12, seed=1, storage=None, **other):
        study = optuna.create_study(
            storage=storage,
            study_name="pkd",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(3),
        )
        return Search(study, tmp_path / "locks", space, trials, seed, **{"say": quiet, **other})

    return make


def peak(best):
    """An objective that is best at a weight, and falls with the ratio to it."""
    return lambda params, report: -(math.log(params["W"] / best) ** 2)


# ------------------------------------------------------------------ made-up problems


@pytest.mark.parametrize(("best", "rounds"), [(16, 0), (3000, 2), (0.2, 1)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_best_weight_is_found_beyond_the_range_too(search, best, rounds, seed):
    found = search({"W": Range(0.5, 500, log=True)}, seed=seed)
    found.run(peak(best))
    assert 1 / 1.5 < found.best.params["W"] / best < 1.5
    assert len(found.rounds) >= rounds and found.edges == {}
    assert len(found.made) == 12 + 6 * len(found.rounds)
    wide = found.ranges["W"]
    assert wide.low <= best <= wide.high


def test_a_range_is_widened_three_times_at_most_and_then_the_edge_is_told(search):
    said = []
    found = search({"W": Range(1.0, 10.0, log=True)}, trials=6, say=said.append)
    found.run(peak(1e9))
    assert found.ranges["W"].high == pytest.approx(10 * 10 ** len(found.rounds))
    assert len(found.rounds) == 3 and len(found.made) == 6 + 3 * 3
    assert found.edges == {"W": "high"}
    assert (
        sum("near the high end of its range, which is now 1 to 100; more" in x for x in said) == 1
    )


def test_a_range_is_not_widened_to_what_cannot_be_meant(search):
    def allowed(params):
        if params["W"] > 10:
            raise UserError("W is too large: write 10 at most.")

    said = []
    found = search({"W": Range(1.0, 10.0, log=True)}, allowed=allowed, say=said.append)
    found.run(peak(1e9), workers=2)
    assert len(found.made) == 12 and found.rounds == [] and found.edges == {"W": "high"}
    assert len(said) == 1 and "cannot be wider: W is too large: write 10 at most." in said[0]


@pytest.mark.parametrize("workers", [1, 3])
def test_two_keys_of_which_one_is_a_choice(search, workers):
    space = {"W": Range(1, 1000, log=True), "T": Choices(("raw", "standard", False))}
    found = search(space, trials=24)

    def objective(params, report):
        return peak(30)(params, report) - 3 * (params["T"] != "standard")

    found.run(objective, workers)
    assert found.best.params["T"] == "standard"
    assert 1 / 1.5 < found.best.params["W"] / 30 < 1.5 and isinstance(found.best.params["W"], int)
    assert found.ranges == space and len(found.made) == 24


@pytest.mark.parametrize(
    ("values", "value", "edge", "low", "high"),
    [
        (Range(0.5, 500, log=True), 0.5, "low", 0.05, 500),
        (Range(0.5, 500, log=True), 250, "high", 0.5, 5000),
        (Range(0.5, 500, log=True), 100, None, None, None),  # near in differences, far in ratios
        (Range(-1.0, 1.0, log=False), -0.8, "low", -3.0, 1.0),
        (Range(2, 10, log=False), 9, "high", 2, 18),
        (Range(1, 100, log=True), 1, "low", 1, 100),  # there is no smaller whole number
    ],
)
def test_edges_and_what_they_are_widened_to(values, value, edge, low, high):
    assert values.edge(value) == edge
    if edge:
        assert values.widened(edge) == Range(low, high, values.log)


def test_what_is_hopeless_is_ended_early(search):
    found = search({"W": Range(1.0, 1000.0, log=True)}, trials=24)
    ended = []

    def objective(params, report):
        value = peak(30)(params, report)
        for step in (1, 2, 3):
            report(step, value)
        ended.append(value)
        return value

    found.run(objective)
    pruned = [t for t in found.made if t.state == optuna.trial.TrialState.PRUNED]
    assert len(pruned) > 3 and len(ended) + len(pruned) == 24
    assert all(trial.last_step == 1 for trial in pruned)
    assert found.best.value == max(ended)


def test_two_searches_share_the_trials(search, tmp_path):
    storage = f"sqlite:///{tmp_path}/trials.db"
    made, both = [], threading.Barrier(2, timeout=30)

    def objective(params, report):
        if len(made) < 2:
            both.wait()  # they are made at the same time
        made.append(params["W"])
        return peak(3000)(params, report)

    searches = [search({"W": Range(0.5, 500, log=True)}, storage=storage) for _ in range(2)]
    threads = [threading.Thread(target=x.run, args=(objective,)) for x in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len({*made}) == 12 + 6 * len(searches[0].rounds)
    assert searches[0].best.params == searches[1].best.params


def test_a_trial_that_failed_is_made_again_with_the_same_values(search):
    asked, fails, one_by_one = [], True, threading.Lock()

    def objective(params, report):
        with one_by_one:  # or two workers could both be the third
            asked.append(params["W"])
            third = len(asked) == 3
        if fails and third:
            while len(asked) < 4:  # another one is made meanwhile
                time.sleep(0.01)
            raise UserError("The disk is full.")
        return peak(30)(params, report)

    found = search({"W": Range(1.0, 1000.0, log=True)})
    with pytest.raises(UserError, match="The disk is full"):
        found.run(objective, workers=2)
    fails, failed, before = False, asked[2], len(asked)
    found.run(objective)
    assert asked[before] == failed and asked.count(failed) == 2
    assert len(asked) == 13 and len({*asked}) == 12
    assert sorted(trial.params["W"] for trial in found.made) == sorted({*asked})


def test_a_failed_trial_is_not_made_again_by_another_worker_of_the_run(search, monkeypatch):
    lock, asked, one_by_one = search_module.locked, [], threading.Lock()

    @contextlib.contextmanager
    def slow_after_errors(path, **wait):
        try:
            with lock(path, **wait):
                yield
        except UserError:
            time.sleep(0.5)  # the thread stands still just after it let the lock go
            raise

    def objective(params, report):
        with one_by_one:
            asked.append(params["W"])
            first = len(asked) == 1
        if first:
            while len(asked) < 2:
                time.sleep(0.01)
            raise UserError("The disk is full.")
        return peak(30)(params, report)

    monkeypatch.setattr(search_module, "locked", slow_after_errors)
    found = search({"W": Range(1.0, 1000.0, log=True)}, trials=4)
    with pytest.raises(UserError, match="The disk is full"):
        found.run(objective, workers=2)
    assert asked.count(asked[0]) == 1


# ------------------------------------------------------------------ the node


@pytest.fixture
def write(tiny, tmp_path):
    """Writes a suite of one method, whose node ``tune`` is partly another."""

    def write(steps=2, **changed):
        node = {"seed": 11, "trials": 2, "keys": {"dpk": {"DISTILL.DPK.WEIGHT": [1.0, 9.0, 81.0]}}}
        content = {
            "seeds": [1, 2],
            "common": {"SOLVER.MAX_ITER": steps, "SOLVER.CHECKPOINT_PERIOD": 15},
            "baseline": "dpk",
            "methods": {"dpk": {"config": str(tiny.dpk), "opts": {"DISTILL.DPK.MASK": "grid"}}},
            "tune": {k: v for k, v in (node | changed).items() if v is not None},
        }
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_ranges_and_choices_are_told_apart(write):
    keys = {
        "A": [0.5, 500],
        "B": [1, 1000],
        "C": ["1e-4", "1e-1"],  # as YAML reads 1e-4
        "D": [0.1, 0.9],
        "E": [-5, 5],
        "F": ["raw", "standard"],
        "G": [True, False],
        "H": [1, 2, 3],
    }
    found = read_suite(write(keys={"dpk": keys})).tune.keys["dpk"]
    assert found == {
        "A": Range(0.5, 500, log=True),
        "B": Range(1, 1000, log=True),
        "C": Range(1e-4, 0.1, log=True),
        "D": Range(0.1, 0.9, log=False),
        "E": Range(-5, 5, log=False),
        "F": Choices(("raw", "standard")),
        "G": Choices((True, False)),
        "H": Choices((1, 2, 3)),
    }
    assert [name for name in "ABCDE" if found[name].whole] == ["B", "E"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, r"tune\.seed of .*suite\.yaml is 2, which is among the suite's seeds"),
        ({"seed": None}, r"tune of .* cannot be read \(.*missing.*`seed`\)"),
        ({"trials": 0}, r"tune of .* cannot be read \(.*>= 1.*trials`\)"),
        ({"trails": 4}, r"tune of .* cannot be read \(.*unknown field `trails`\)"),
        ({"keys": {}}, r"tune\.keys of .* is empty"),
        ({"keys": {"dpk": {}}}, r"tune\.keys\.dpk of .* is empty"),
        ({"keys": {"dkp": {"A": [1, 2]}}}, r"no method in tune\.keys of .*'dkp': did you mean 'dp"),
        ({"keys": {"dpk": {"A": [5, 1]}}}, r"keys\.dpk\.A of .* is \[5, 1\]: write the smaller"),
        ({"keys": {"dpk": {"A": [3, 3]}}}, r"keys\.dpk\.A of .* is \[3, 3\]: write the smaller"),
        ({"keys": {"dpk": {"A": 3}}}, r"keys\.dpk\.A of .* is 3: write two numbers, for a range"),
        ({"keys": {"dpk": {"A": ["a"]}}}, r"keys\.dpk\.A of .*: write two numbers, for a range"),
        ({"keys": {"dpk": {"A": [[1], [2]]}}}, r"keys\.dpk\.A of .*: write two numbers"),
        ({"keys": {"dpk": {"A": ["a", "b", "a"]}}}, r"keys\.dpk\.A of .* has a value twice"),
        ({"keys": {"dpk": {"SEED": [1, 9]}}}, r"keys\.dpk\.SEED of .* cannot be tuned"),
    ],
)
def test_a_mistake_in_the_node_is_one_sentence(write, changed, message):
    with pytest.raises(UserError, match=message):
        read_suite(write(**changed))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"DISTILL.DPK.WIEGHT": [1, 9]}, r"methods\.dpk of .* did you mean DISTILL\.DPK\.WEIGHT\?"),
        ({"DISTILL.DPK.WEIGHT": [1, 1e9]}, r"methods\.dpk of .* cannot be trained: .*WEIGHT\) is"),
        ({"DISTILL.DPK.MASK": ["grid", "random", "rnd"]}, r"methods\.dpk of .* mask named 'rnd'"),
    ],
)
def test_values_that_no_training_would_take_are_told_before_any(write, tmp_path, keys, message):
    suite = read_suite(write(keys={"dpk": keys}))
    with pytest.raises(UserError, match=message):
        tune(suite, tmp_path / "out", make_slots(1), quiet)
    assert not (tmp_path / "out").exists()


def test_without_a_node_or_optuna_one_sentence_says_so(write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="Tuning takes the package optuna: pip install optuna"):
        tune(read_suite(write()), tmp_path, make_slots(1), quiet)
    path = write()
    path.write_text(path.read_text().partition("tune:")[0])
    with pytest.raises(UserError, match=r"suite\.yaml has no node tune"):
        tune(read_suite(path), tmp_path, make_slots(1), quiet)


def start(*argv):
    """The tool as a process; its output."""
    return subprocess.Popen(
        [sys.executable, ROOT / "tools/tune.py", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def trials_of(output):
    return json.loads((output / "trials.json").read_text())["dpk"]["trials"]


# ------------------------------------------------------------------ trials, with a stand-in

# In place of the training command, which takes seconds: `python -m` looks into the working
# directory first. It reports a metric on its way, and waits to be ended if that is bad.
PROGRAM = """
import json, os, sys, time
folder, argv = sys.argv[-1], sys.argv[1:-2]
weights = [float(argv[i + 1]) for i, x in enumerate(argv) if x == "DISTILL.DPK.WEIGHT"]
weight = (weights or [50])[-1]
with open("diary", "a") as file:
    print(json.dumps([folder, *argv]), file=file)
if weight == 13:
    sys.exit("error: Training stopped in step 7: loss_dpk is nan; lower it.")
if weight == 14:
    sys.exit("error: The disk is full.")
with open(folder + "/metrics.json", "w") as file:
    print(json.dumps({"iteration": 49, "bbox/AP": weight}), file=file)
if weight in (1, 2):
    time.sleep(60)
while weight in (15, 16, 17) and not os.path.exists("go"):
    time.sleep(0.05)
with open(folder + "/results.json", "w") as file:
    json.dump({"results": {"bbox": {"AP": weight + 0.5}}}, file)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Trainings are stand-ins; gives the command lines of those that were started."""
    program = tmp_path / "dpk_det/engine/train.py"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    for folder in program.parents[:2]:
        (folder / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    diary = tmp_path / "diary"
    diary.touch()
    return lambda: [json.loads(line) for line in diary.read_text().splitlines()]


@pytest.fixture
def train(tmp_path, stand_in):
    """Makes a trial with a weight; what it reports is in ``train.reported``."""
    trainings = Trainings(tmp_path / "trials", "bbox/AP", [], [{}], quiet, Interrupts())
    student = Run("dpk-x-seed11", "none.yaml", tmp_path / "runs", ("A", "1"), after=("teacher",))

    def train(weight):
        def report(step, value):
            train.reported.append((step, value))
            if value == 1:
                raise optuna.TrialPruned
            if value == 2:
                trainings.interrupts.asked = signal.SIGTERM

        return trainings.train(student, 100, {"DISTILL.DPK.WEIGHT": weight}, report)

    train.reported = []
    return train


def test_a_trial_reports_on_its_way_and_gives_its_metric(train, tmp_path):
    assert train(3) == 3.5 and train(4) == 4.5
    assert [path.name[:6] for path in (tmp_path / "trials").iterdir()] == ["dpk-x-"] * 2
    assert train.reported == [(50, 3), (50, 4)]


def test_a_trial_that_is_over_reports_and_keeps_its_metric_even_if_hopeless(train, tmp_path):
    assert train(3) == 3.5
    (metrics,) = tmp_path.glob("trials/*/metrics.json")
    metrics.write_text(metrics.read_text().replace("3.0", "1.0"))
    assert train(3) == 3.5 and train.reported == [(50, 3), (50, 1)]


def test_a_trial_that_is_hopeless_is_ended(train, tmp_path):
    with pytest.raises(optuna.TrialPruned):
        train(1)
    assert train.reported == [(50, 1)]
    assert not [*tmp_path.glob("trials/*/results.json")]


def test_a_signal_ends_a_trial(train):
    with pytest.raises(Stopped) as stopped:
        train(2)
    assert stopped.value.message == "Stopped by SIGTERM; call again to go on from there."


def test_one_that_diverges_has_no_value_and_another_failure_ends_all(train):
    assert train(13) is None
    with pytest.raises(UserError, match=r"The training dpk-x-\w+ failed: the output is in .*log"):
        train(14)


def test_teacher_and_start_come_first_and_all_trials_have_the_seed_of_the_tuning(
    write, tiny, tmp_path, stand_in
):
    path = write(trials=3, keys={"dpk": {"DISTILL.DPK.WEIGHT": [3.0, 30.0]}})
    content = yaml.safe_load(path.read_text())
    content["teachers"] = {
        "big": {"config": str(tiny.teacher)},
        "begin": {"config": str(tiny.plain)},
    }
    content["start"] = "begin"
    content["methods"]["dpk"]["teacher"] = "big"
    content["methods"]["plain"] = {"config": str(tiny.plain)}  # is not tuned
    path.write_text(yaml.safe_dump(content))
    said = []
    tables = tune(read_suite(path), tmp_path / "out", [{}, {}], said.append)
    started, made = stand_in(), trials_of(tmp_path / "out")
    runs = tmp_path / "out/runs"
    assert {line[0] for line in started[:2]} == {str(runs / "big"), str(runs / "begin")}
    for folder, *argv in started[2:]:
        opts = dict(zip(argv[3::2], argv[4::2], strict=True))
        assert opts["SEED"] == "11" and opts["TEST.EVAL_PERIOD"] == "1"
        assert opts["MODEL.BACKBONE_WEIGHTS"] == str(runs / "begin/model_final.pth")
        assert opts["DISTILL.TEACHER.WEIGHTS"] == str(runs / "big/model_final.pth")
        assert Path(folder).parent == tmp_path / "out/trials"
    rounds = tables.count("its range became")
    assert len(started) - 2 == len(made) == 3 + 2 * rounds
    assert sum("near the high end of its range, which is now" in line for line in said) == rounds
    # the stand-in's metric grows with the weight
    weight = max(trial["params"]["DISTILL.DPK.WEIGHT"] for trial in made)
    tuned = read_suite(tmp_path / "out/tuned.yaml")
    assert tuned.methods["dpk"].opts["DISTILL.DPK.WEIGHT"] == weight
    assert tuned.methods["plain"] == read_suite(path).methods["plain"]


def test_two_tools_share_the_trials(write, tmp_path, stand_in):
    path, output = write(keys={"dpk": {"DISTILL.DPK.WEIGHT": [15.0, 16.0, 17.0]}}), tmp_path / "out"
    tools = [start(path, "--output", output, "--workers", "1") for _ in range(2)]
    while len(stand_in()) < 2:  # which do not end before both are there
        assert [tool.poll() for tool in tools] == [None] * 2, tools[0].communicate()
        time.sleep(0.05)
    (tmp_path / "go").touch()
    said = [tool.communicate(timeout=300)[0] for tool in tools]
    assert [tool.returncode for tool in tools] == [0, 0], said
    assert [text.count("started, log in") for text in said] == [1, 1] and len(stand_in()) == 2
    table = (output / "trials.md").read_text()
    assert len(trials_of(output)) == 2 and all(table in text for text in said)


# ------------------------------------------------------------------ real trainings


def test_a_tool_that_is_killed_goes_on_and_leaves_a_suite_that_can_be_compared(
    write, tmp_path, capsys
):
    path, output = write(steps=60), tmp_path / "out"
    argv = ["--output", str(output), "--workers", "1"]
    tool = start(path, *argv)
    while not [x for x in output.glob("trials/dpk-*/metrics.json") if x.stat().st_size]:
        assert tool.poll() is None, tool.communicate()[0]
        time.sleep(0.05)
    tool.send_signal(signal.SIGKILL)
    tool.communicate()
    (killed,) = output.glob("trials/dpk-*")
    assert not (killed / RESULTS).exists()
    run([str(path), *argv[:-1], "2"])
    trials, folders = trials_of(output), [*output.glob("trials/dpk-*")]
    weights = [trial["params"]["DISTILL.DPK.WEIGHT"] for trial in trials]
    assert [trial["state"] for trial in trials] == ["complete"] * 2 and len({*weights}) == 2
    assert all(list(trial["on_the_way"]) == ["15", "30", "45"] for trial in trials)
    results = {folder: json.loads((folder / RESULTS).read_text()) for folder in folders}
    assert len(folders) == 2  # of which one was gone on with, not trained anew
    assert {x: len(results[x]["resumed"]) for x in folders} == {x: x == killed for x in folders}
    figures = {result["results"]["bbox"]["AP"] for result in results.values()}
    assert {trial["value"] for trial in trials} == figures

    table = (output / "trials.md").read_text()
    assert "| trial | DISTILL.DPK.WEIGHT | bbox/AP | seconds |" in " ".join(table.split())
    assert all(f"| {weight:.0f} " in table for weight in weights)
    best = max(trials, key=lambda trial: trial["value"])
    tuned = read_suite(output / "tuned.yaml")
    assert tuned.methods["dpk"].opts == read_suite(path).methods["dpk"].opts | best["params"]
    assert tuned.seeds == (1, 2) and tuned.tune is None
    assert load_configs(plan(tuned, output / "runs"), trains=True)
    assert (output / "tuned.yaml").read_text().startswith("# Made by tools/tune.py from ")

    capsys.readouterr()
    run([str(path), *argv])  # nothing is left to do
    printed = capsys.readouterr().out
    assert "started" not in printed and table in printed

    path.write_text(path.read_text().replace("81.0", "82.0"))
    with pytest.raises(SystemExit):
        run([str(path), *argv])
    assert "were made for other keys, ranges, seed" in capsys.readouterr().err
    assert (output / "trials.md").read_text() == table

    (output / "trials.db").write_text("no database")
    with pytest.raises(SystemExit):
        run([str(path), *argv])
    assert "trials.db cannot be used (file is not a database): " in capsys.readouterr().err

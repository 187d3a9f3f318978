"""A slice of the cases, and the command's own workings. `make fuzz` tries all cases."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from all_cases import all_cases
from cases import EITHER, REFUSED, WORKS, Case, nothing
from coco_cases import coco_cases
from judge import ACCEPTED, GOOD, HANG, OUTCOMES, REFUSED_WRONGLY, TRACEBACK, judge
from run import run_all, table
from suite_cases import suite_cases
from world import World

from dpk_det.errors import UserError

SLICE = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("fuzz") / "world")


@pytest.fixture(scope="module")
def cases(world):
    return all_cases(world)


def test_there_are_cases_of_every_kind(cases):
    kinds = {case.kind for case in cases}
    assert kinds == {"configs", "COCO JSON", "images", "suites", "predict"}
    assert len(cases) >= 500


def test_the_cases_are_the_same_in_every_run(world):
    for list_them in (coco_cases, suite_cases):
        names = [case.name for case in list_them(world)]
        assert names == [case.name for case in list_them(world)]


def test_a_slice_of_all_cases_comes_out_well(cases):
    wrong = []
    for case in cases[:: len(cases) // SLICE]:
        outcome, said = judge(case)
        if outcome not in GOOD:
            wrong.append((outcome, case.kind, case.name, said))
    assert not wrong


# ------------------------------------------------------------------ how outcomes are told


def refuse(sentence):
    def accept(folder):
        raise UserError(sentence)

    return accept


def fail(*_):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("expect", "accept", "outcome"),
    [
        (REFUSED, refuse("It is wrong: mend it."), "refused in a sentence"),
        (EITHER, refuse("It is wrong: mend it."), "refused in a sentence"),
        (WORKS, refuse("It is wrong: mend it."), REFUSED_WRONGLY),
        (REFUSED, refuse("two\nlines"), TRACEBACK),
        (REFUSED, refuse(""), TRACEBACK),
        (REFUSED, refuse("x" * 10_000), TRACEBACK),
        (REFUSED, fail, TRACEBACK),
        (REFUSED, lambda folder: nothing, ACCEPTED),
        (WORKS, lambda folder: nothing, "works"),
        (EITHER, lambda folder: fail, ACCEPTED),
        (EITHER, lambda folder: nothing, "works"),
    ],
)
def test_outcomes(expect, accept, outcome):
    assert judge(Case("a", "b", expect, accept))[0] == outcome


def test_cases_that_hang_or_kill_their_process_are_told_and_the_others_are_done(tmp_path):
    def hang(folder):
        time.sleep(1000)

    def stand_still_once(folder):
        if not (tmp_path / "late").exists():
            (tmp_path / "late").touch()
            time.sleep(1000)
        return nothing

    def die(folder):
        import os

        os._exit(1)

    accepts = {
        "hang": hang,
        "die": die,
        "late": stand_still_once,
        "a": lambda folder: nothing,
        "b": refuse("No: mend it."),
    }
    cases = [Case("kind", name, EITHER, accept) for name, accept in accepts.items()]
    outcomes = run_all(cases, workers=2, seconds=2)
    found = [x for x, _ in outcomes]
    assert found == [HANG, TRACEBACK, "works", "works", "refused in a sentence"]
    assert "in hang" in outcomes[0][1]
    rows = table(cases, outcomes).splitlines()
    assert rows[2].replace(" ", "") == "|kind|5|1|2|1|1|0|0|"
    assert rows[3].replace(" ", "") == "|all|5|1|2|1|1|0|0|" and len(OUTCOMES) == 6

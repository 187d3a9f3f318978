import json
from dataclasses import replace

import pytest

from dpk_det.comparison.evidence import Evidence
from dpk_det.comparison.jobs import Slots
from dpk_det.comparison.runs import train_all


@pytest.fixture
def evidence(tmp_path) -> Evidence:
    return Evidence(tmp_path / "evidence")


def quiet(line):
    pass


def elsewhere(runs, folder):
    """The same runs with folders of another machine's."""
    return [replace(run, folder=folder / run.name) for run in runs]


def pair(stand_in):
    return [stand_in.run("teacher"), stand_in.run("student", after=("teacher",))]


def test_what_is_kept_is_not_trained_again(stand_in, evidence, tmp_path):
    runs = pair(stand_in)
    train_all(runs, Slots([{}]), quiet)
    evidence.keep(runs, tmp_path)
    again = elsewhere(runs, tmp_path / "elsewhere")
    evidence.restore(again)
    train_all(again, Slots([{}]), quiet)
    assert len(stand_in.events()) == 4
    assert [run.results for run in again] == [run.results for run in runs]


def test_a_student_more_takes_the_teacher_alone_once_more(stand_in, evidence, tmp_path):
    runs = pair(stand_in)
    train_all(runs, Slots([{}]), quiet)
    evidence.keep(runs, tmp_path)
    again = elsewhere([*runs, stand_in.run("new", after=("teacher",))], tmp_path / "elsewhere")
    evidence.restore(again)
    train_all(again, Slots([{}]), quiet)
    assert stand_in.events()[4:] == [
        f"{name} {what}" for name in ("teacher", "new") for what in ("starts", "ends")
    ]
    evidence.keep(again, tmp_path)  # and once more, with the teacher younger than its student
    train_all(again, Slots([{}]), quiet)
    assert len(stand_in.events()) == 8


def test_of_weights_nothing_is_kept(stand_in, evidence, tmp_path):
    (run,) = runs = [stand_in.run("student")]
    train_all(runs, Slots([{}]), quiet)
    (run.folder / "config.yaml").write_text("VERSION: 2\n")
    evidence.keep(runs, tmp_path)
    names = sorted(path.name for path in (evidence.folder / "student").iterdir())
    assert names == ["config.yaml", "results.json"]


def test_what_has_begun_is_not_touched(stand_in, evidence, tmp_path):
    runs = [stand_in.run("student")]
    train_all(runs, Slots([{}]), quiet)
    evidence.keep(runs, tmp_path)
    (begun,) = elsewhere(runs, tmp_path / "elsewhere")
    begun.folder.mkdir(parents=True)
    (begun.folder / "config.yaml").write_text("VERSION: 2\n")
    evidence.restore([begun])
    assert begun.results is None


def test_other_figures_than_those_kept_are_told(stand_in, evidence, tmp_path):
    (run,) = runs = [stand_in.run("teacher")]
    train_all(runs, Slots([{}]), quiet)
    evidence.keep(runs, tmp_path)
    figures = {"bbox": {"AP": 11.0}}
    path = run.folder / "results.json"
    path.write_text(json.dumps(run.results | {"results": figures}))
    said = []
    evidence.keep(runs, tmp_path, said.append)
    assert said[0].startswith("teacher: bbox AP 11.0, but ")
    assert "bbox AP 12.3" in said[0]


def test_controls_are_as_long_as_they_were(evidence, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "step_times.json").write_text("{}")
    evidence.keep([], before)
    evidence.restore_step_times(after)
    assert (after / "step_times.json").read_text() == "{}"

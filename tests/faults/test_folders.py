"""One folder, one training."""

import hashlib

import pytest
from harness import Fault, await_file, check_equal, load

from dpk_det.errors import BUSY

whole = pytest.mark.whole


@whole
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["plain", "dpk-workers"])
def test_a_second_training_in_a_folder_is_sent_away(experiment, tmp_path, name, resume):
    one = experiment(name)
    folder, held = tmp_path / "run", tmp_path / "held"
    first = one.train(folder, faults=[{"at": "step", "n": 3, "do": f"hold {held}"}])
    await_file(held, first)
    second = one.train(folder, resume=resume)
    try:
        second.end(BUSY, "run")
    finally:
        held.unlink()
        first.succeed()
    check_equal(folder, one.reference, [first])


@whole
def test_of_two_trainings_started_at_once_one_trains(experiment, tmp_path):
    one = experiment("plain")
    pair = [one.train(tmp_path / "run") for _ in range(2)]
    statuses = sorted(command.wait() for command in pair)
    if statuses not in ([0, BUSY], [0, 2]):  # the other may be so late that the folder is used
        raise Fault(f"statuses {statuses}")
    check_equal(tmp_path / "run", one.reference, [c for c in pair if c.status == 0])


@whole
def test_a_new_training_in_a_used_folder_is_refused(experiment, tmp_path):
    one = experiment("plain")
    folder = tmp_path / "run"
    one.train(folder).succeed()
    before = digests(folder)
    second = one.train(folder, "SOLVER.BASE_LR", 0.02)
    second.refuse("run")
    assert digests(folder) == before


@whole
def test_a_new_training_in_an_unfinished_folder_is_refused(experiment, tmp_path):
    one = experiment("plain")
    folder = tmp_path / "run"
    one.killed(folder, 5)
    one.train(folder).refuse("run")
    command = one.resume(folder).succeed()
    check_equal(folder, one.reference, [command])


@whole
@pytest.mark.parametrize("weights", ["", "model_final.pth"])
def test_a_student_does_not_overwrite_its_teacher(experiment, tiny, tmp_path, weights):
    one = experiment("dpk")
    folder = tmp_path / "run"
    teacher = ["--config-file", tiny.teacher, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 2]
    one.nursery.start(folder, teacher).succeed()
    before = load(folder / "model_final.pth")["model"].keys()
    own = tmp_path / "teacher.yaml"
    own.write_text(f'_BASE_: "{tiny.teacher}"\nOUTPUT_DIR: "{folder}"\n')
    path = weights and folder / weights
    opts = ("DISTILL.TEACHER.CONFIG_FILE", own, "DISTILL.TEACHER.WEIGHTS", path)
    for resume in (False, True):
        command = one.train(folder, *opts, resume=resume)
        try:
            command.refuse("run")
        finally:
            after = load(folder / "model_final.pth")["model"].keys()
            if before != after:
                raise Fault("teacher overwritten")


def digests(folder):
    """Name to digest of what trainings take up: checkpoints, config, results."""
    names = ("*.pth", "last_checkpoint", "config.yaml", "results.json")
    paths = [path for name in names for path in folder.glob(name)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

"""Trainings that are killed, at random moments and while they write, end as the one that was not.

For each number: a training of one of the experiments, killed once or twice, and resumed till its
end. The numbers seed the moments. Odd ones aim at files: at the moment before one is opened,
renamed or removed, or at the middle of a write.
"""

import random
import signal
import time
from typing import Any

import pytest
from harness import EXPERIMENTS, MAX_ITER, Experiment, check_equal, check_whole

NAMES = list(EXPERIMENTS)
SLICE = (1,)


def aim(one: Experiment, dice: random.Random) -> dict[str, Any]:
    """A moment at which a file is touched, or begins to be written and is cut."""
    if dice.random() < 0.5:
        return {"at": "file", "n": dice.randint(1, one.files), "do": "SIGKILL"}
    step, bytes_ = dice.randint(1, MAX_ITER), dice.randint(40_000, 160_000)
    return {"at": "step", "n": step, "do": f"cut {bytes_}"}


@pytest.mark.parametrize(
    "number", [pytest.param(i, marks=[] if i in SLICE else pytest.mark.whole) for i in range(50)]
)
def test_a_killed_training_ends_as_one_that_was_not(experiment, tmp_path, number):
    dice = random.Random(number)
    one = experiment(NAMES[number // 2 % len(NAMES)])
    reference, folder, commands = one.reference, tmp_path / "run", []
    for time_ in range(dice.choice((1, 1, 2))):
        faults = [aim(one, dice)] if number % 2 else []
        command = one.train(folder, faults=faults, resume=time_ > 0)
        commands.append(command)
        if not faults:
            time.sleep(dice.uniform(0, one.seconds))
            command.kill()
        status = command.wait()
        if status not in (0, -signal.SIGKILL, -signal.SIGXFSZ):
            command.succeed()  # says how it failed
        if folder.exists():
            check_whole(folder)
    commands.append(one.resume(folder).succeed())
    check_equal(folder, reference, commands)


@pytest.mark.whole
@pytest.mark.parametrize("name", NAMES)
def test_two_trainings_without_a_fault_are_equal(experiment, tmp_path, name):
    one = experiment(name)
    command = one.train(tmp_path / "run").succeed()
    check_equal(tmp_path / "run", one.reference, [command])


@pytest.mark.whole
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_of_a_killed_training(experiment, tmp_path, name):
    command = experiment(name).train(
        tmp_path / "run", faults=[{"at": "step", "n": 3, "do": "SIGKILL"}]
    )
    command.die().left_behind()


@pytest.mark.whole
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_can_be_resumed_at_once(experiment, tmp_path, name):
    # though its data loader's workers need seconds to notice
    one = experiment(name)
    one.train(tmp_path / "run", faults=[{"at": "step", "n": 5, "do": "SIGKILL"}]).die()
    command = one.resume(tmp_path / "run").succeed()
    check_equal(tmp_path / "run", one.reference, [command])

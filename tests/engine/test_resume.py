"""Trainings that are stopped and go on: equal to those that were not, bit for bit."""

import json

import pytest
import torch
from detectron2.engine import HookBase

from dpk_det.engine import DistillTrainer

STEPS = 6
SCHEDULE = ["SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2]
SCHEDULE += ["INPUT.MIN_SIZE_TRAIN", "(48, 56, 64)", "SOLVER.STEPS", "(4,)"]
TIMES = ("time", "data_time", "eta_seconds")


class Killed(BaseException):
    """As a kill, after which nothing is tidied up."""


class Killer(HookBase):
    def __init__(self, step):
        self.step = step

    def before_step(self):
        if self.trainer.iter == self.step:
            raise Killed


@pytest.fixture
def kill_before(monkeypatch):
    """``kill_before(step)`` ends the next trainings before that step; None: lets them be."""
    build_hooks = DistillTrainer.build_hooks

    def kill(step):
        monkeypatch.setattr(
            DistillTrainer,
            "build_hooks",
            lambda self: [*build_hooks(self), *([] if step is None else [Killer(step)])],
        )
        # a killed process writes no last lines and evaluates nothing
        monkeypatch.setattr(
            DistillTrainer,
            "after_train",
            lambda self: super(DistillTrainer, self).after_train() if step is None else None,
        )

    return kill


def contents(folder):
    state = torch.load(folder / "model_final.pth", weights_only=True)
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return state, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_equal(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (x, y) in enumerate(zip(one, other, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other or one != one, path  # NaN where there is nothing to measure


def assert_same_run(one, other):
    (state, lines), (state_2, lines_2) = contents(one), contents(other)
    for content in (state, state_2):
        kept = content["trainer"]["hooks"]["Continuity"]
        for name in ("config", "resumed"):
            del kept[name]
        for name in TIMES:
            for part in ("values", "smoothed"):
                kept["curves"][part].pop(name, None)
    assert_equal(lines, lines_2)
    assert_equal(state, state_2)


METHODS = {
    "plain": [],
    "dpk": ["DISTILL.DPK.CKA_EVERY", 3],
    "dpk+kd": ["DISTILL.METHODS", "['dpk', 'kd']"],
    "reviewkd+mgd": ["DISTILL.METHODS", "['reviewkd', 'mgd']", "DISTILL.REVIEWKD.MID", 8],
}


@pytest.mark.parametrize(
    ("kind", "workers", "kills"),
    [("plain", 2, [3]), ("dpk", 0, [3, 5]), ("dpk+kd", 0, [5]), ("reviewkd+mgd", 0, [3])],
)
def test_a_resumed_detector_equals_one_that_was_not_stopped(
    tiny, tmp_path, command, kill_before, kind, workers, kills
):
    config = tiny.plain if kind == "plain" else tiny.dpk
    opts = [*SCHEDULE, *METHODS[kind], "DATALOADER.NUM_WORKERS", workers]
    args = ("--config-file", config, "--resume", *opts, "OUTPUT_DIR")
    kill_before(None)
    command(*args, tmp_path / "whole")
    for step in kills:
        kill_before(step)
        with pytest.raises(Killed):
            command(*args, tmp_path / "resumed")
    kill_before(None)
    torch.rand(5)
    command(*args, tmp_path / "resumed")
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    results = json.loads((tmp_path / "resumed" / "results.json").read_text())
    assert results["resumed"] == [{"step": step - step % 2, "exact": True} for step in kills]
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["resumed"] == []

"""Step times, of real steps."""

import torch

from dpk_det.engine.step_time import step_times


def test_each_config_takes_its_steps_and_nothing_else_changes(tiny):
    cfg = tiny.cfg("plain")
    state = torch.get_rng_state()
    taken = step_times({"one": cfg, "other": tiny.cfg("dpk")}, rounds=4, warmup=1)
    assert {name: len(seconds) for name, seconds in taken.items()} == {"one": 4, "other": 4}
    assert all(x > 0 for seconds in taken.values() for x in seconds)
    assert torch.equal(torch.get_rng_state(), state)
    assert cfg.dump() == tiny.cfg("plain").dump()


def test_a_teacher_that_is_not_trained_yet_is_looked_at_all_the_same(tiny, tmp_path):
    opts = ("DISTILL.TEACHER.WEIGHTS", tmp_path / "none.pth")
    taken = step_times({"dpk": tiny.cfg("dpk", *opts)}, rounds=1, warmup=0)
    assert len(taken["dpk"]) == 1


def test_slow_steps_are_measured_less_often(tiny):
    taken = step_times({"one": tiny.cfg("plain"), "other": tiny.cfg("plain")}, limit=0)
    assert {name: len(seconds) for name, seconds in taken.items()} == {"one": 5, "other": 5}

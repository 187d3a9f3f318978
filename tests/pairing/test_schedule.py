"""When distillation counts: it stops, and the teacher is run no more."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from dpk_det.errors import UserError
from dpk_det.pairing.distil import attach_from_config
from dpk_det.pairing.schedule import Schedule

METHODS = ("DISTILL.METHODS", "['dpk', 'kd']")


@pytest.fixture
def model(tiny):
    return attach_from_config(
        tiny.build("plain"),
        tiny.cfg("dpk", *METHODS, "DISTILL.STOP_AT", 0.5, "SOLVER.MAX_ITER", 8),
    )


def step(model, batch, iteration):
    torch.manual_seed(iteration)
    with EventStorage(iteration):
        return model.train()(batch)


def test_from_its_share_on_the_student_learns_alone(model, tiny, batch, watch_tensors, kept):
    seen = watch_tensors(model.distillation.teacher.model.backbone)
    made = watch_tensors(model.backbone)
    assert {"loss_dpk", "loss_kd_roi"} <= step(model, batch, 3).keys() and seen
    del seen[:]
    plain = tiny.build("plain")
    for iteration in (4, 5, 7):  # of 8
        losses, expected = (step(x, batch, iteration) for x in (model, plain))
        assert losses.keys() == expected.keys()
        assert all(torch.equal(losses[name], expected[name]) for name in losses)
    assert not seen  # the teacher was not run
    del losses
    assert kept(made) == 0
    sum(step(model, batch, 4).values()).backward()
    assert all(p.grad is None for p in model.distiller.parameters())


def test_among_several_processes_the_distillers_weights_still_have_a_gradient(
    model, batch, monkeypatch
):
    # which DistributedDataParallel waits for; two real ones are in tests/engine/test_torchrun.py
    plain = {name: loss.item() for name, loss in step(model, batch, 5).items()}
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    losses = step(model, batch, 5)
    assert {name: loss.item() for name, loss in losses.items()} == plain
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.distiller.parameters())


def test_the_caller_of_a_loop_without_storage_says_how_far_it_is():
    schedule = Schedule(stop_at=0.5)
    assert [schedule.is_over(x) for x in (0.0, 0.49, 0.5, 1.0)] == [False, False, True, True]
    assert schedule.progress(None) is None
    assert not Schedule().is_over(1.0)
    with EventStorage(30) as storage:
        assert Schedule(max_iter=40).progress(storage) == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop_at": 1.5}, "stop_at is 1.5: write"),
        ({"grad_share": float("nan")}, "grad_share is"),
        ({"grad_share": 0.5, "grad_share_every": 0}, "grad_share is 0.5 but .*_every is 0: write"),
    ],
)
def test_shares_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Schedule(**arguments)


WORKER = """
import hashlib, json
from pathlib import Path
from detectron2.engine import defaults
from detectron2.utils import comm
from dpk_det.engine import DistillTrainer, launch
from dpk_det.engine.train import parse_args, setup

defaults.collect_env_info = lambda: ""  # takes seconds

def main(args):
    trainer = DistillTrainer(setup(args))
    trainer.train()
    model = trainer.model.module
    tensors = [x.detach().numpy().tobytes() for x in model.state_dict().values()]
    factors = model.distiller.grad_share.factors.tolist()
    out = {"weights": hashlib.sha256(b"".join(tensors)).hexdigest(), "factors": factors}
    Path(trainer.cfg.OUTPUT_DIR, f"rank{comm.get_rank()}.json").write_text(json.dumps(out))

if __name__ == "__main__":
    launch(main, parse_args())
"""


def test_two_processes_steer_alike_and_stop_together(two_processes):
    opts = ["DISTILL.GRAD_SHARE", "0.5", "DISTILL.STOP_AT", "0.5", "SOLVER.MAX_ITER", "4"]
    one, other = two_processes(WORKER, *opts, "DATASETS.TEST", "()")
    assert one == other and one["factors"] != [1]

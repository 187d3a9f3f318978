"""Gradients at the student's maps, measured and steered, against gradients taken by hand."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from dpk_det.checkpoint.loading import Checkpointer
from dpk_det.pairing.distil import attach_from_config
from dpk_det.pairing.grad_share import GradShare

METHODS = ("DISTILL.METHODS", "['pkd', 'kd']", "DISTILL.KD.RPN_WEIGHT", 1)


def attach(tiny, *opts):
    return attach_from_config(tiny.build("plain"), tiny.cfg("dpk", *METHODS, *opts))


def step(model, batch, iteration=0):
    torch.manual_seed(iteration)
    with EventStorage(iteration) as storage:
        losses = model.train()(batch)
        return losses, {k: v for k, (v, _) in storage.latest().items() if "/" in k}


def by_hand(model, batch):
    """Shares of pkd and kd, by gradients that are left at the maps."""
    maps, norms = [], []
    hook = model.backbone.register_forward_hook(lambda *args: maps.append(args[-1]))
    for wanted in (("loss_cls", "loss_box_reg", "loss_rpn"), ("loss_pkd",), ("loss_kd",)):
        losses, _ = step(model, batch)
        for x in maps[-1].values():
            x.retain_grad()
        sum(loss for name, loss in losses.items() if name.startswith(wanted)).backward()
        grads = [x.grad for x in maps[-1].values() if x.grad is not None]
        norms.append(sum(grad.square().sum() for grad in grads).sqrt().item())
        model.zero_grad()
    hook.remove()
    return norms[1] / norms[0], norms[2] / norms[0]


def test_the_share_is_that_of_gradients_taken_by_hand(tiny, batch):
    model = attach(tiny)
    _, logged = step(model, batch)
    pkd, kd = by_hand(model, batch)
    assert pkd > 0 and kd > 0
    assert logged["pkd/grad_share"] == pytest.approx(pkd, rel=1e-4)
    assert logged["kd/grad_share"] == pytest.approx(kd, rel=1e-4)
    assert "pkd/factor" not in logged


def test_measuring_changes_no_loss_and_no_gradient(tiny, batch):
    found = []
    for every in (0, 1):
        model = attach(tiny, "DISTILL.GRAD_SHARE_EVERY", every)
        losses, logged = step(model, batch)
        assert ("pkd/grad_share" in logged) == bool(every)
        sum(losses.values()).backward()
        found.append([*losses.values(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_steps_between_measurements_log_the_last(tiny, batch):
    model = attach(tiny, "DISTILL.GRAD_SHARE_EVERY", 3)
    shares = []
    for iteration in range(5):
        with torch.no_grad():  # so that there is something new to measure
            model.roi_heads.box_predictor.cls_score.weight.mul_(1.5)
        shares.append(step(model, batch, iteration)[1]["pkd/grad_share"])
    assert shares[0] == shares[1] == shares[2] != shares[3] == shares[4]


def test_steering_brings_each_method_to_its_share_at_once(tiny, batch):
    model = attach(tiny, "DISTILL.GRAD_SHARE", 0.25)
    _, logged = step(model, batch)
    for name in ("pkd", "kd"):  # what it was without steering, and what was done about it
        assert logged[f"{name}/grad_share"] * logged[f"{name}/factor"] == pytest.approx(0.25)
    assert logged["pkd/factor"] != pytest.approx(logged["kd/factor"])
    pkd, kd = by_hand(model, batch)  # with the factors in the losses
    assert (pkd, kd) == pytest.approx((0.25, 0.25), rel=1e-4)
    _, logged = step(model, batch, 1)  # which measures again
    for name in ("pkd", "kd"):
        assert logged[f"{name}/grad_share"] == pytest.approx(0.25, rel=0.5)  # another draw


def test_the_weight_makes_no_difference_where_it_is_steered(tiny, batch):
    found = []
    for weight in (0.5, 50):
        model = attach(tiny, "DISTILL.GRAD_SHARE", 0.25, "DISTILL.PKD.WEIGHT", weight)
        found.append(step(model, batch)[0]["loss_pkd"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_factors_and_shares_resume_from_the_state_dict(tiny, batch):
    model, other = (attach(tiny, "DISTILL.GRAD_SHARE", 0.25) for _ in range(2))
    step(model, batch)
    other.load_state_dict(model.state_dict())
    one, two = (step(x, batch, 77) for x in (model, other))
    assert one[0].keys() == two[0].keys() and one[1] == two[1]
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])


def test_a_checkpoint_of_an_earlier_version_lacks_them(tiny, tmp_path):
    model = attach(tiny)
    old = {k: v for k, v in model.state_dict().items() if "grad_share" not in k}
    assert len(model.state_dict()) - len(old) == 2
    model.load_state_dict(old)  # strictly
    torch.save({"model": old}, tmp_path / "old.pth")
    found = Checkpointer(model).load(str(tmp_path / "old.pth"), checkpointables=[])
    assert found == {} and model.distiller.grad_share.factors.tolist() == [1, 1]


def test_steered_students_measure_often_at_first():
    measure, steer = GradShare(["a"]), GradShare(["a"], target=0.5)
    assert [i for i in range(250) if measure.is_due(i)] == [0, 100, 200]
    due = [i for i in range(110) if steer.is_due(i)]
    assert due == [0, 1, 2, 4, 8, 16, 25, 50, 75, 100]
    assert not any(GradShare(["a"], 0.5, every=0).is_due(i) for i in range(10))


def test_a_method_that_gives_no_gradient_keeps_its_factor():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    share = GradShare(["nothing", "flat", "bends"], target=0.5)
    distilled = {
        "nothing": {},
        "flat": {"loss_flat": (0 * x).sum()},
        "bends": {"loss_bends": x.square().sum()},
    }
    losses = share(0, {"loss": x.sum()}, distilled, [x])
    assert share.factors.tolist()[:2] == [1, 1] and share.factors[2] != 1
    assert losses["nothing"] == {} and losses["flat"]["loss_flat"] == 0
    # |2 x| times the factor, over |1|
    want = 0.5 * (2 * 3 * 4 * 4) ** 0.5 / (2 * x.norm())
    assert share.factors[2].item() == pytest.approx(want.item(), rel=1e-5)


def test_a_backbone_that_learns_nothing_has_no_share():
    x = torch.randn(2, 3, 4, 4)
    share = GradShare(["a"], target=0.5)
    share(0, {"loss": x.sum()}, {"a": {"loss_a": x.sum()}}, [x])
    assert share.shares.tolist() == [0] and share.factors.tolist() == [1]


def test_a_task_without_a_gradient_gives_no_share():
    maps = [torch.ones(1, 1, 2, 2, requires_grad=True)]
    own, distilled = {"loss": 0 * maps[0].sum()}, {"pkd": {"loss_pkd": maps[0].square().sum()}}
    steered = GradShare(["pkd"], target=2.0)
    assert steered(0, own, distilled, maps)["pkd"]["loss_pkd"] == 4
    assert steered.metrics() == {"pkd/grad_share": 0, "pkd/factor": 1}

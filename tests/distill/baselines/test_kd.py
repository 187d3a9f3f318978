"""KD against the divergences of torch.distributions, place by place."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from dpk_det.distill import Logits
from dpk_det.distill.baselines.kd import KD, binary_kl, expected_objects, softened_kl


def slow_softmax(student, teacher, temperature):
    """``T^2 KL(teacher, student)``, the mean over places."""
    parts = [
        kl_divergence(Categorical(logits=t / temperature), Categorical(logits=s / temperature))
        for s, t in zip(student.double(), teacher.double(), strict=True)
    ]
    return temperature**2 * sum(parts) / len(parts)


def slow_sigmoid(student, teacher, temperature):
    """``T^2`` times the sum of each yes or no's divergence over the expected number of objects."""
    total, objects = 0, 0
    for s, t in zip(student.double(), teacher.double(), strict=True):
        for a, b in zip(s, t, strict=True):
            p, q = Bernoulli(logits=b / temperature), Bernoulli(logits=a / temperature)
            total = total + kl_divergence(p, q)
        objects += max(torch.sigmoid(b).item() for b in t)
    return temperature**2 * total / max(objects, 1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("rpn_weight", [0.0, 0.5])
def test_it_is_the_papers_formula_on_every_head(scene, agree, rpn_weight, temperature):
    sc = scene()
    distiller = KD(sc.levels, weight=2.5, rpn_weight=rpn_weight, temperature=temperature)
    losses = distiller(*sc.args())
    student, teacher = sc.student.logits, sc.teacher.logits
    want = {}
    for head, slow in (("roi", slow_softmax), ("rpn", slow_sigmoid), ("dense", slow_sigmoid)):
        weight = rpn_weight if head == "rpn" else 2.5
        if weight:
            loss = slow(student[head].values, teacher[head].values.detach(), temperature)
            want[f"loss_kd_{head}"] = weight * loss
    assert set(losses) == set(want)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(want[name].item(), rel=1e-4), name
    agree(distiller, sc, sum(losses.values()), sum(want.values()))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_softmax_heads_equal_torchs_divergence(temperature):
    s, t = torch.randn(8, 5), torch.randn(8, 5)
    want = F.kl_div(
        (s / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="batchmean"
    )
    got = softened_kl(Logits(s, True), Logits(t, True), temperature)
    torch.testing.assert_close(got, temperature**2 * want)


def test_sigmoid_heads_equal_the_divergence_of_bernoullis():
    s, t = 3 * torch.randn(50, 4), 3 * torch.randn(50, 4)
    want = kl_divergence(Bernoulli(logits=t.double()), Bernoulli(logits=s.double()))
    torch.testing.assert_close(binary_kl(s, t).double(), want, rtol=1e-4, atol=1e-5)


def test_expected_objects_count_each_place_once_and_one_at_least():
    logits = torch.tensor([[0.0, -9.0], [9.0, 9.0], [-50.0, -60.0]])
    want = 0.5 + torch.sigmoid(torch.tensor(9.0)).item()
    assert expected_objects(logits).item() == pytest.approx(want)
    assert expected_objects(logits[2:]) == 1
    assert expected_objects(torch.zeros(0, 3)) == 1


def test_equal_logits_have_no_loss_and_no_gradient(scene):
    sc = scene()
    sc.teacher.logits = {
        head: Logits(x.values.detach(), x.exclusive) for head, x in sc.student.logits.items()
    }
    losses = KD(sc.levels, rpn_weight=1.0)(*sc.args())
    assert len(losses) == 3
    for loss in losses.values():
        assert loss.item() == pytest.approx(0, abs=1e-7)
    sum(losses.values()).backward()
    assert all(x.values.grad.abs().max() < 1e-6 for x in sc.student.logits.values())


@pytest.mark.parametrize("exclusive", [True, False])
def test_no_places_have_no_loss_but_a_gradient(exclusive):
    s, t = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3)
    loss = softened_kl(Logits(s, exclusive), Logits(t, exclusive), 2.0)
    loss.backward()
    assert loss == 0 and s.grad.shape == (0, 3)


@pytest.mark.parametrize("exclusive", [True, False])
def test_extreme_logits_stay_finite(exclusive):
    values = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 30.0], [200.0, 200.0, -200.0]])
    s = values.flip(1).requires_grad_()
    loss = softened_kl(Logits(s, exclusive), Logits(values, exclusive), 1.0)
    loss.backward()
    assert loss.isfinite() and loss > 0 and s.grad.isfinite().all()


def test_a_head_that_nobody_compared_has_no_loss(scene):
    sc = scene()
    for features in (sc.student, sc.teacher):
        features.logits = {"roi": features.logits["roi"]}
    assert list(KD(sc.levels, rpn_weight=1.0)(*sc.args())) == ["loss_kd_roi"]


def test_the_proposals_are_asked_for_only_where_they_have_a_weight(scene):
    levels = scene().levels
    assert KD(levels).heads == {"roi", "dense", "image"}
    assert KD(levels, rpn_weight=0.1).heads == {"roi", "dense", "image", "rpn"}

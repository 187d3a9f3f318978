"""DKD against its formula, region by region."""

import math

import pytest
import torch
from torch.nn import functional as F

from dpk_det.distill import Logits
from dpk_det.distill.baselines.dkd import DKD, decouple
from dpk_det.distill.baselines.kd import softened_kl


def probabilities(logits, temperature):
    exps = [(x / temperature).exp() for x in logits.double()]
    return [e / sum(exps) for e in exps]


def slow_parts(student, teacher, label, temperature):
    """TCKD and NCKD of one region."""
    p, q = (probabilities(x, temperature) for x in (teacher, student))
    rest_p = sum(x for i, x in enumerate(p) if i != label)
    rest_q = sum(x for i, x in enumerate(q) if i != label)
    tckd = p[label] * (p[label] / q[label]).log() + rest_p * (rest_p / rest_q).log()
    nckd = 0
    for i in range(len(p)):
        if i != label:
            a, b = p[i] / rest_p, q[i] / rest_q
            nckd = nckd + a * (a / b).log()
    return tckd, nckd


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_papers_formula(scene, agree, temperature):
    sc = scene()
    distiller = DKD(sc.levels, alpha=1.5, beta=0.4, temperature=temperature)
    losses = distiller(*sc.args())
    assert list(losses) == ["loss_dkd_dense", "loss_dkd_roi"]  # objectness is no class
    own, other = sc.student.logits["roi"], sc.teacher.logits["roi"]
    want = 0
    for s, t, label in zip(own.values, other.values.detach(), own.labels.tolist(), strict=True):
        tckd, nckd = slow_parts(s, t, label, temperature)
        want = want + temperature**2 * (1.5 * tckd + 0.4 * nckd) / len(own.values)
    agree(distiller, sc, losses["loss_dkd_roi"], want)


def test_dense_heads_have_alpha_times_the_loss_of_kd(scene):
    sc = scene()
    got = DKD(sc.levels, alpha=1.5, beta=9.0, temperature=2.0)(*sc.args())["loss_dkd_dense"]
    want = softened_kl(sc.student.logits["dense"], sc.teacher.logits["dense"], 2.0)
    assert got.item() == pytest.approx(1.5 * want.item())


def test_the_parts_equal_the_loop():
    torch.manual_seed(0)
    for classes in (2, 3, 9):
        s, t = 3 * torch.randn(10, classes), 3 * torch.randn(10, classes)
        labels = torch.randint(classes, (10,))
        got = decouple(s, t, labels, 2.0)
        for i in range(10):
            want = slow_parts(s[i], t[i], labels[i].item(), 2.0)
            for g, w in zip(got, want, strict=True):
                assert g[i].item() == pytest.approx(float(w), rel=1e-4, abs=1e-6)


def test_the_parts_make_up_the_whole_divergence():
    # KL = TCKD + (1 - p_t) NCKD
    torch.manual_seed(1)
    for temperature in (0.5, 1.0, 4.0):
        s, t = 2 * torch.randn(40, 7), 2 * torch.randn(40, 7)
        labels = torch.randint(7, (40,))
        tckd, nckd = decouple(s, t, labels, temperature)
        log_s, log_t = ((x / temperature).log_softmax(1) for x in (s, t))
        p_t = log_t.exp()[torch.arange(40), labels]
        whole = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)
        torch.testing.assert_close(tckd + (1 - p_t) * nckd, whole, rtol=1e-4, atol=1e-5)


def test_the_others_part_ignores_the_targets_logit_and_the_targets_part_the_others_order():
    s, t, labels = torch.randn(6, 5), torch.randn(6, 5), torch.zeros(6, dtype=torch.long)
    before = decouple(s, t, labels, 1.0)
    moved = s.clone()
    moved[:, 0] += 3
    after = decouple(moved, t, labels, 1.0)
    torch.testing.assert_close(after[1], before[1])
    assert not torch.allclose(after[0], before[0])
    order = decouple(s[:, [0, 4, 3, 2, 1]], t, labels, 1.0)
    torch.testing.assert_close(order[0], before[0])
    assert not torch.allclose(order[1], before[1])


def test_equal_logits_have_no_loss(scene):
    sc = scene()
    sc.teacher.logits = {
        head: Logits(x.values.detach(), x.exclusive) for head, x in sc.student.logits.items()
    }
    for loss in DKD(sc.levels)(*sc.args()).values():
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_two_classes_have_no_others_to_tell_apart():
    tckd, nckd = decouple(torch.randn(5, 2), torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1]), 1.0)
    assert (tckd > 0).all() and not nckd.any()


def test_no_regions_have_no_loss_but_a_gradient():
    s = torch.zeros(0, 4, requires_grad=True)
    own = Logits(s, True, torch.zeros(0, dtype=torch.long))
    loss = DKD([]).head_loss("roi", own, Logits(torch.zeros(0, 4), True))
    loss.backward()
    assert loss == 0 and s.grad.shape == (0, 4)


def test_extreme_logits_stay_finite():
    values = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 30.0], [200.0, 200.0, -200.0]])
    for label in range(3):
        s = values.flip(1).clone().requires_grad_()
        labels = torch.full((3,), label)
        loss = sum(part.sum() for part in decouple(s, values, labels, 1.0))
        loss.backward()
        assert math.isfinite(loss.item()) and s.grad.isfinite().all()


def test_objectness_is_no_class(scene):
    sc = scene()
    assert "rpn" in sc.student.logits
    assert list(DKD(sc.levels)(*sc.args())) == ["loss_dkd_dense", "loss_dkd_roi"]

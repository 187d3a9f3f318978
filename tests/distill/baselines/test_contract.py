"""What holds for every rival: padding, gradients, mixed precision, seeds."""

import copy

import pytest
import torch
from torch.nn import functional as F

from dpk_det.distill import DISTILLERS

ARGS = {"reviewkd": {"mid": 4}, "kd": {"rpn_weight": 0.5}}
RIVALS = sorted(set(DISTILLERS) - {"dpk"})
ON_MAPS = [name for name in RIVALS if name not in ("kd", "dkd")]


def build(name, scene, shake):
    torch.manual_seed(0)
    return shake(DISTILLERS[name](scene.levels, **ARGS.get(name, {})))


def total(distiller, scene):
    torch.manual_seed(1)  # MGD draws
    return sum(distiller(*scene.args()).values())


@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
@pytest.mark.parametrize("name", ON_MAPS)
def test_what_stands_in_the_padding_changes_nothing(scene, shake, name, widths):
    results = []
    for fill in (torch.nan, 0.0, 1e3):
        sc = scene(True, widths)
        with torch.no_grad():
            for features in (sc.student, sc.teacher):
                for key, x in features.maps.items():
                    x.masked_fill_(sc.padding()[key].unsqueeze(1), fill)
        distiller = build(name, sc, shake)
        loss = total(distiller, sc)
        loss.backward()
        for key, x in sc.student.maps.items():
            assert not x.grad.masked_select(sc.padding()[key].unsqueeze(1)).any()
        grads = [x.grad for x in (*sc.student.maps.values(), *distiller.parameters())]
        results.append([loss, *grads])
    for same in zip(*results, strict=True):
        assert same[0].isfinite().all()
        assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])


@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
# the BatchNorm and the pooled maps of ReviewKD see how large the padding is
@pytest.mark.parametrize("name", sorted(set(ON_MAPS) - {"reviewkd"}))
def test_a_larger_canvas_changes_nothing(scene, shake, name, widths):
    losses = []
    for more in ((0, 0, 0, 0), (0, 4, 0, 8)):
        sc = scene(True, widths)
        for features in (sc.student, sc.teacher):
            for key, x in features.maps.items():
                features.maps[key] = F.pad(x.detach(), more, value=torch.nan)
        distiller = build(name, sc, shake)
        distiller.mask_ratio = 0.0  # of MGD, whose draws have the canvas's shape
        losses.append(total(distiller, sc))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ON_MAPS)
def test_the_maps_layout_in_memory_changes_nothing(scene, shake, name, padded):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        sc = scene(padded)
        leaves = list(sc.student.maps.values())
        for features in (sc.student, sc.teacher):
            features.maps = {k: x.to(memory_format=layout) for k, x in features.maps.items()}
        loss = total(build(name, sc, shake), sc)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", RIVALS)
def test_gradients_reach_the_student_and_every_parameter_but_not_the_teacher(
    scene, shake, name, padded
):
    sc = scene(padded)
    distiller = build(name, sc, shake)
    for x in sc.teacher.maps.values():
        x.requires_grad_()
    total(distiller, sc).backward()
    for key, p in distiller.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
        # batch normalisation takes off whatever is added before it
        assert p.grad.any() or "bias" in key, key
    seen = sc.student.maps.values()
    if distiller.heads:
        seen = [
            sc.student.logits[head].values for head in distiller.heads & sc.student.logits.keys()
        ]
    assert all(x.grad.any() for x in seen)
    assert all(x.grad is None for x in sc.teacher.maps.values())


@pytest.mark.parametrize("name", RIVALS)
def test_every_parameter_has_a_gradient_from_the_first_step_on(scene, name):
    # DistributedDataParallel waits for each
    sc = scene()
    distiller = DISTILLERS[name](sc.levels, **ARGS.get(name, {}))
    total(distiller, sc).backward()
    assert [key for key, p in distiller.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("half_maps", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", RIVALS)
def test_mixed_precision_is_finite_and_near_the_full_one(scene, shake, name, padded, half_maps):
    sc = scene(padded)
    distiller = build(name, sc, shake)
    want = total(copy.deepcopy(distiller), sc)
    if half_maps:
        for features in (sc.student, sc.teacher):
            features.maps = {key: x.bfloat16() for key, x in features.maps.items()}
            for logits in features.logits.values():
                logits.values = logits.values.bfloat16()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller(*sc.args())
    for key, loss in losses.items():
        assert loss.isfinite() and loss.dtype == torch.float32 and loss.shape == (), key
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in distiller.parameters())
    assert sum(losses.values()).item() == pytest.approx(want.item(), rel=0.05)


@pytest.mark.parametrize("name", RIVALS)
def test_the_same_seed_gives_the_same_loss(scene, shake, name):
    sc = scene()
    distiller = build(name, sc, shake)
    assert torch.equal(total(distiller, sc), total(distiller, sc))


@pytest.mark.parametrize("name", RIVALS)
def test_losses_have_the_methods_name_and_there_are_no_others(scene, shake, name):
    sc = scene()
    losses = build(name, sc, shake)(*sc.args())
    assert losses and all(key.startswith(f"loss_{name}") for key in losses)


@pytest.mark.parametrize("name", ON_MAPS)
def test_maps_of_different_size_are_cut_to_what_they_share(scene, shake, name):
    results = []
    for cut in (False, True):  # one row fewer of the teacher's, one column of the student's
        sc = scene(False)
        student, teacher = sc.student.maps, sc.teacher.maps
        for key in student:
            student[key] = student[key].detach()[..., : -1 if cut else None, :-1].requires_grad_()
        for key in teacher:
            teacher[key] = teacher[key][..., :-1, : -1 if cut else None]
        results.append(total(build(name, sc, shake), sc))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", RIVALS)
def test_the_state_resumes(scene, shake, name):
    sc = scene()
    one = build(name, sc, shake)
    other = DISTILLERS[name](sc.levels, **ARGS.get(name, {}))
    other.load_state_dict(one.state_dict())
    assert torch.equal(total(one, sc), total(other, sc))

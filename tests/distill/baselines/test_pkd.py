"""PKD against the correlation that it is said to be."""

import numpy as np
import pytest
import torch

from dpk_det.distill.baselines.pkd import PKD


def slow(distiller, scene, adapt):
    """``1 / (2 m) sum (s^ - t^)^2`` of maps with channels standardised over images and cells."""
    levels = []
    for level in scene.levels:
        adapter = distiller.adapters[level.student]
        pairs = [(adapt(adapter, s), t) for s, t in scene.images(level)]
        total, count = 0, 0
        for c in range(len(pairs[0][1])):
            s, t = (torch.cat([pair[i][c].flatten() for pair in pairs]) for i in (0, 1))
            s, t = (
                (x - sum(x) / len(x)) / (sum((x - sum(x) / len(x)) ** 2) / len(x) + 1e-6).sqrt()
                for x in (s, t)
            )
            total = total + sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
            count += len(s)
        levels.append(total / (2 * count))
    return distiller.weight * sum(levels)


@pytest.mark.parametrize(("padded", "widths"), [(False, (3, 5)), (True, (4, 4)), (True, (2, 3))])
def test_it_is_the_papers_formula(scene, shake, adapt, agree, padded, widths):
    sc = scene(padded, widths)
    distiller = shake(PKD(sc.levels, weight=2.5))
    losses = distiller(*sc.args())
    assert list(losses) == ["loss_pkd"]
    agree(distiller, sc, losses["loss_pkd"], slow(distiller, sc, adapt))


def test_it_is_one_minus_the_pearson_correlation_of_channels(scene):
    sc = scene(widths=(4, 4))
    level = sc.levels[0]
    pairs = list(sc.images(level))
    r = []
    for c in range(4):
        s, t = (torch.cat([p[i][c].flatten() for p in pairs]).detach().numpy() for i in (0, 1))
        r.append(np.corrcoef(s, t)[0, 1])
    loss = PKD([level], weight=1.0)(*sc.args())["loss_pkd"]
    assert loss.item() == pytest.approx(1 - np.mean(r), rel=1e-4)


def test_scale_and_offset_of_the_teachers_channels_do_not_matter(scene):
    sc = scene(widths=(4, 4))
    before = PKD(sc.levels)(*sc.args())["loss_pkd"].item()
    scales, offsets = torch.tensor([0.5, 2, 30, 1]).view(4, 1, 1), torch.arange(4.0).view(4, 1, 1)
    maps = sc.teacher.maps
    sc.teacher.maps = {name: x * scales + offsets for name, x in maps.items()}
    assert PKD(sc.levels)(*sc.args())["loss_pkd"].item() == pytest.approx(before, rel=1e-4)
    sc.teacher.maps = {
        f"q{name[1]}": x.detach() * scales - offsets for name, x in sc.student.maps.items()
    }
    assert PKD(sc.levels)(*sc.args())["loss_pkd"].item() == pytest.approx(0, abs=1e-5)


def test_equal_maps_have_no_loss_and_opposite_ones_two_a_level(scene):
    sc = scene(widths=(4, 4))
    for sign, want in ((1, 0), (-1, 4)):  # 2 a level
        sc.teacher.maps = {f"q{name[1]}": sign * x.detach() for name, x in sc.student.maps.items()}
        loss = PKD(sc.levels, weight=1.0)(*sc.args())["loss_pkd"]
        assert loss.item() == pytest.approx(want, abs=1e-4)


def test_dead_channels_have_finite_gradients(scene):
    sc = scene(widths=(4, 4))
    with torch.no_grad():
        for x in (*sc.student.maps.values(), *sc.teacher.maps.values()):
            x[:, 1] = 3.0
    loss = PKD(sc.levels)(*sc.args())["loss_pkd"]
    loss.backward()
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in sc.student.maps.values())

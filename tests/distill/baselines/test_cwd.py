"""CWD against its formula, channel by channel."""

import pytest
import torch

from dpk_det.distill.baselines.cwd import CWD


def slow(distiller, scene, adapt):
    """``T^2 / C sum_c sum_i phi(t) log(phi(t) / phi(s))``, the mean over images."""
    temperature, parts = distiller.temperature, []
    for level in scene.levels:
        for s, t in scene.images(level):
            s = adapt(distiller.adapters[level.student], s)
            total = 0
            for c in range(len(t)):
                p, q = (x.flatten() / temperature for x in (t[c], s[c]))
                p, q = (x.exp() / x.exp().sum() for x in (p, q))
                total = total + sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))
            parts.append(temperature**2 / len(t) * total)
    return distiller.weight * sum(parts) / 2  # images


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("padded", "widths"), [(False, (3, 5)), (True, (4, 4)), (True, (2, 3))])
def test_it_is_the_papers_formula(scene, shake, adapt, agree, padded, widths, temperature):
    sc = scene(padded, widths)
    distiller = shake(CWD(sc.levels, weight=2.5, temperature=temperature))
    losses = distiller(*sc.args())
    assert list(losses) == ["loss_cwd"]
    agree(distiller, sc, losses["loss_cwd"], slow(distiller, sc, adapt))


def test_an_image_beside_a_larger_one_counts_as_alone(scene, shake):
    sc = scene()
    distiller = shake(CWD(sc.levels))
    ones = [distiller(*sc.alone(i).args())["loss_cwd"].item() for i in range(2)]
    assert distiller(*sc.args())["loss_cwd"].item() == pytest.approx(sum(ones) / 2, rel=1e-5)


def test_equal_maps_have_no_loss_whatever_is_added_to_a_channel(scene):
    sc = scene(widths=(4, 4))
    offsets = torch.arange(4.0).view(4, 1, 1)
    sc.teacher.maps = {f"q{name[1]}": x.detach() for name, x in sc.student.maps.items()}
    assert CWD(sc.levels)(*sc.args())["loss_cwd"] == 0
    sc.teacher.maps = {name: x + offsets for name, x in sc.teacher.maps.items()}
    assert CWD(sc.levels)(*sc.args())["loss_cwd"].item() == pytest.approx(0, abs=1e-6)


def test_extreme_maps_stay_finite(scene):
    sc = scene(widths=(4, 4))
    sc.teacher.maps = {name: 1e4 * x for name, x in sc.teacher.maps.items()}
    loss = CWD(sc.levels)(*sc.args())["loss_cwd"]
    grads = torch.autograd.grad(loss, sc.leaves(), allow_unused=True)
    assert loss.isfinite() and all(g.isfinite().all() for g in grads if g is not None)

"""FitNets against its formula, cell by cell."""

import pytest

from dpk_det.distill.baselines.fitnets import FitNets
from dpk_det.errors import UserError


def slow(distiller, scene, adapt, target):
    """The mean over levels of the mean squared error over channels and cells."""
    total = 0
    for level in scene.levels:
        adapter = distiller.adapters[level.student]
        pairs = [(adapt(adapter, s), t) for s, t in scene.images(level)]
        channels = len(pairs[0][1])
        moments = []
        for c in range(channels):
            values = [v for _, t in pairs for row in t[c].tolist() for v in row]
            mean = sum(values) / len(values)
            moments.append((mean, sum((v - mean) ** 2 for v in values) / len(values)))
        scale = 1.0
        if target == "relative":
            scale = 1 / (sum(var for _, var in moments) / channels + 1e-6)
        error, cells = 0, 0
        for s, t in pairs:
            cells += t[0].numel()
            for c, (mean, var) in enumerate(moments):
                wanted = (t[c] - mean) / (var + 1e-6) ** 0.5 if target == "standard" else t[c]
                error = error + ((s[c] - wanted) ** 2).sum()
        total = total + scale * error / (channels * cells)
    return distiller.weight * total / len(scene.levels)


@pytest.mark.parametrize("target", ["raw", "relative", "standard"])
@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_the_papers_formula(scene, shake, adapt, agree, padded, widths, target):
    sc = scene(padded, widths)
    distiller = shake(FitNets(sc.levels, weight=2.5, target=target))
    losses = distiller(*sc.args())
    assert list(losses) == ["loss_fitnets"]
    agree(distiller, sc, losses["loss_fitnets"], slow(distiller, sc, adapt, target))


def test_an_image_beside_a_larger_one_counts_by_its_cells_as_alone(scene, shake):
    sc = scene()
    distiller = shake(FitNets(sc.levels[:1]))
    ones = [distiller(*sc.alone(i).args())["loss_fitnets"] for i in range(2)]
    both = (ones[0] * 48 + ones[1] * 40) / 88
    assert distiller(*sc.args())["loss_fitnets"].item() == pytest.approx(both.item(), rel=1e-5)


def test_equal_maps_have_no_loss(scene):
    sc = scene(widths=(4, 4))
    sc.teacher.maps = {f"q{name[1]}": x.detach() for name, x in sc.student.maps.items()}
    assert FitNets(sc.levels)(*sc.args())["loss_fitnets"] == 0


def test_an_unknown_target_is_an_error(scene):
    with pytest.raises(UserError, match="no target named 'relativ': did you mean 'relative'"):
        FitNets(scene().levels, target="relativ")


def test_maps_of_equal_width_have_no_adapter(scene):
    assert list(FitNets(scene(widths=(4, 4)).levels).parameters()) == []
    shapes = [tuple(p.shape) for p in FitNets(scene().levels).parameters()]
    assert shapes == [(5, 3, 1, 1), (5,)] * 2

"""MGD against its formula, cell by cell."""

import pytest
import torch

from dpk_det.distill.baselines.mgd import MGD


def convolve(conv, x):
    """A 3 x 3 convolution of one map (C, H, W) with zeros around it."""
    height, width = x.shape[1:]
    out = []
    for row in range(height):
        for col in range(width):
            total = conv.bias.double()
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    if 0 <= row + dr < height and 0 <= col + dc < width:
                        kernel = conv.weight.double()[:, :, dr + 1, dc + 1]
                        total = total + kernel @ x[:, row + dr, col + dc]
            out.append(total)
    return torch.stack(out, 1).view(-1, height, width)


def slow(distiller, scene, adapt, drawn):
    """``alpha sum (G(align(S) M) - T)^2``, the sum over levels and the mean over images."""
    total = 0
    for level, noise in zip(scene.levels, drawn, strict=True):
        first, relu, second = distiller.generators[level.student]
        assert isinstance(relu, torch.nn.ReLU)
        for (s, t), own in zip(scene.images(level), noise, strict=True):
            height, width = t.shape[1:]
            kept = (own[0, :height, :width] >= distiller.mask_ratio).double()
            x = adapt(distiller.adapters[level.student], s) * kept
            out = convolve(second, convolve(first, x).relu())
            total = total + ((out - t) ** 2).sum()
    return distiller.weight * total / 2


@pytest.mark.parametrize(("padded", "widths"), [(False, (3, 5)), (True, (4, 4)), (True, (2, 3))])
def test_it_is_the_papers_formula(scene, shake, adapt, agree, monkeypatch, padded, widths):
    sc = scene(padded, widths)
    distiller = shake(MGD(sc.levels, weight=2.5, mask_ratio=0.3))
    drawn, rand = [], torch.rand
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "rand", lambda *size, **kw: drawn.append(rand(*size, **kw)) or drawn[-1]
        )
        losses = distiller(*sc.args())
    assert list(losses) == ["loss_mgd"]
    assert [tuple(x.shape) for x in drawn] == [(2, 1, 8, 8), (2, 1, 4, 4)]
    agree(distiller, sc, losses["loss_mgd"], slow(distiller, sc, adapt, drawn))


@pytest.mark.parametrize("widths", [(3, 5), (4, 4)])
def test_an_image_beside_a_larger_one_counts_as_alone(scene, shake, widths):
    sc = scene(True, widths)
    distiller = shake(MGD(sc.levels, mask_ratio=0.0))
    alone = [distiller(*sc.alone(i).args())["loss_mgd"] for i in range(2)]
    torch.testing.assert_close(distiller(*sc.args())["loss_mgd"], sum(alone) / 2)


def test_blanked_cells_are_drawn_anew_for_every_image_and_step(scene):
    # without generators' say: a cell takes part where its gradient is not zero
    sc = scene(False, (4, 4))
    distiller = MGD(sc.levels[:1], mask_ratio=0.65)
    for p in distiller.generators.parameters():
        torch.nn.init.constant_(p, 0.1)
    shares, patterns = [], []
    for _ in range(30):
        loss = distiller(*sc.args())["loss_mgd"]
        (grad,) = torch.autograd.grad(loss, [sc.student.maps["p3"]])
        assert torch.equal(grad[:, 0] != 0, grad[:, 3] != 0)  # a cell goes with all its channels
        patterns.extend((grad[:, 0] != 0).flatten(1).tolist())
        shares.append((grad[:, 0] != 0).float().mean())
    assert sum(shares) / 30 == pytest.approx(0.35, abs=0.03)
    assert len({tuple(x) for x in patterns}) == 60


def test_without_masking_all_cells_take_part(scene):
    sc = scene()
    loss = MGD(sc.levels, mask_ratio=0.0)(*sc.args())["loss_mgd"]
    loss.backward()
    for name, x in sc.student.maps.items():
        assert ((x.grad != 0).any(1) | sc.padding()[name]).all()

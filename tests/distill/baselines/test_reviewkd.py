"""ReviewKD: its context loss against loops, and its fusion against a slow twin."""

import pytest
import torch
from torch import nn

from dpk_det.distill import Features, Level
from dpk_det.distill.baselines.reviewkd import Fusion, ReviewKD, context_loss


def pool(x, side):
    """(C, H, W) to (C, side, side): the mean of the cells that each part touches."""
    height, width = x.shape[1:]
    rows = []
    for i in range(side):
        top, bottom = i * height // side, -(-(i + 1) * height // side)
        row = []
        for j in range(side):
            left, right = j * width // side, -(-(j + 1) * width // side)
            part = x[:, top:bottom, left:right].flatten(1)
            row.append(part.sum(1) / part.shape[1])
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def slow_context_loss(out, target, extents):
    """HCL of two batches in float64, image by image."""
    batch, channels, height, width = target.shape
    error, cells = 0, 0
    clear = [torch.zeros_like(x) for x in (out, target)]
    for i, (h, w) in enumerate(extents):
        for r in range(h):
            for c in range(w):
                error = error + ((out[i, :, r, c] - target[i, :, r, c]) ** 2).sum() / channels
        cells += h * w
        for whole, x in zip(clear, (out, target), strict=True):
            whole[i, :, :h, :w] = x[i, :, :h, :w]
    loss, total, weight = error / cells, 1.0, 1.0
    for side in (4, 2, 1):
        if side >= height:
            continue
        weight /= 2
        total += weight
        pooled = 0
        for a, b in zip(*clear, strict=True):
            pooled = pooled + ((pool(a, side) - pool(b, side)) ** 2).sum()
        loss = loss + weight * pooled / (batch * channels * side * side)
    return loss / total


@pytest.mark.parametrize(
    ("size", "extents"),
    [
        ((8, 8), None),
        ((5, 7), None),
        ((4, 6), None),
        ((3, 2), None),
        ((2, 2), None),
        ((1, 1), None),
        ((8, 9), [(8, 6), (5, 9)]),
        ((4, 4), [(1, 1), (4, 3)]),
    ],
)
def test_the_context_loss_equals_the_loop(size, extents):
    out, target = (torch.randn(2, 3, *size, dtype=torch.float64) for _ in range(2))
    cells = None
    if extents:
        cells = torch.zeros(2, *size, dtype=torch.bool)
        for mask, (h, w) in zip(cells, extents, strict=True):
            mask[:h, :w] = True
    want = slow_context_loss(out, target, extents or [size] * 2)
    torch.testing.assert_close(context_loss(out, target, cells), want)
    assert context_loss(target, target, cells) == 0


# ------------------------------------------------------------------ fusion


def normalise(norm, x):
    """Batch normalisation in training, channel by channel."""
    out = []
    for c in range(x.shape[1]):
        mean = x[:, c].mean()
        var = ((x[:, c] - mean) ** 2).mean()
        own = (x[:, c] - mean) / (var + norm.eps).sqrt()
        out.append(own * norm.weight[c].double() + norm.bias[c].double())
    return torch.stack(out, 1)


def slow_fuse(fusion, x, above):
    """ABF in float64."""
    weight = fusion.reduce[0].weight.double()[:, :, 0, 0]
    x = normalise(fusion.reduce[1], torch.einsum("ms,bshw->bmhw", weight, x))
    if above is not None:
        height, width = x.shape[2:]
        grown = x.new_zeros(*x.shape)
        for r in range(height):
            for c in range(width):
                grown[:, :, r, c] = above[
                    :, :, r * above.shape[2] // height, c * above.shape[3] // width
                ]
        weight = fusion.attend.weight.double()[:, :, 0, 0]
        both = torch.cat([x, grown], 1)
        logits = torch.einsum("am,bmhw->bahw", weight, both)
        shares = 1 / (1 + (-logits - fusion.attend.bias.double()[:, None, None]).exp())
        x = shares[:, 0:1] * x + shares[:, 1:2] * grown
    kernel, out = fusion.expand[0].weight.double(), 0
    height, width = x.shape[2:]
    framed = x.new_zeros(*x.shape[:2], height + 2, width + 2)
    framed[:, :, 1:-1, 1:-1] = x
    for dr in range(3):
        for dc in range(3):
            part = framed[:, :, dr : dr + height, dc : dc + width]
            out = out + torch.einsum("tm,bmhw->bthw", kernel[:, :, dr, dc], part)
    return normalise(fusion.expand[1], out), x


@pytest.mark.parametrize(("padded", "widths"), [(False, (3, 5)), (True, (4, 4)), (True, (2, 3))])
def test_it_is_the_slow_twin(scene, shake, agree, padded, widths):
    sc = scene(padded, widths)
    distiller = shake(ReviewKD(sc.levels, weight=2.5, mid=6))
    losses = distiller(*sc.args())
    assert list(losses) == ["loss_reviewkd"]
    total, above = 0, None
    for level in reversed(sc.levels):  # the coarser first
        s = sc.student.maps[level.student]
        extents = [tuple(t.shape[1:]) for _, t in sc.images(level)]
        x, target = (s.new_zeros(2, c, *s.shape[2:], dtype=torch.float64) for c in widths)
        for i, (one, other) in enumerate(sc.images(level)):
            h, w = extents[i]
            x[i, :, :h, :w], target[i, :, :h, :w] = one, other
        out, above = slow_fuse(distiller.fusions[level.student], x, above)
        total = total + slow_context_loss(out, target, extents)
    agree(distiller, sc, losses["loss_reviewkd"], 2.5 * total)


def test_shapes_of_the_fusion():
    level = Level("p3", "q3", 8, 3, 5)
    top, lower = (Fusion(level, 6, top=top) for top in (True, False))
    assert top.attend is None and isinstance(lower.attend, nn.Conv2d)
    out, above = top(torch.randn(2, 3, 3, 4), None)
    assert out.shape == (2, 5, 3, 4) and above.shape == (2, 6, 3, 4)
    out, above = lower(torch.randn(2, 3, 5, 8), above)
    assert out.shape == (2, 5, 5, 8) and above.shape == (2, 6, 5, 8)


def test_what_comes_down_is_the_fused_map(shake):
    fusion = shake(Fusion(Level("p3", "q3", 8, 3, 5), 6, top=False))
    x, above = torch.randn(2, 3, 5, 8), torch.randn(2, 6, 3, 4)
    for got, want in zip(
        fusion(x, above), slow_fuse(fusion, x.double(), above.double()), strict=True
    ):
        torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=1e-4)


def test_the_finest_of_three_levels_depends_on_all():
    levels = [Level(f"p{i}", f"q{i}", 2**i, 3, 5) for i in (3, 4, 5)]
    distiller = ReviewKD(levels, mid=4)
    maps = {f"p{i}": torch.randn(2, 3, 64 >> i, 64 >> i, requires_grad=True) for i in (3, 4, 5)}
    outs = {}
    for name, fusion in distiller.fusions.items():
        fusion.register_forward_hook(lambda _, args, out, name=name: outs.update({name: out[0]}))
    teacher = {f"q{i}": torch.randn(2, 5, 64 >> i, 64 >> i) for i in (3, 4, 5)}
    distiller(Features(maps, {}), Features(teacher, {}))
    assert [tuple(out.shape[1:]) for out in outs.values()] == [(5, 2, 2), (5, 4, 4), (5, 8, 8)]
    for i, name in enumerate(outs):  # in the order they were made: the coarsest first
        maps_below = [maps[f"p{5 - j}"] for j in range(3)]
        grads = torch.autograd.grad(
            outs[name].pow(3).sum(), maps_below, retain_graph=True, allow_unused=True
        )
        assert [g is not None and bool(g.any()) for g in grads] == [j <= i for j in range(3)]


def test_only_the_coarsest_level_has_nothing_above_it(scene):
    distiller = ReviewKD(scene().levels, mid=4)
    assert [fusion.attend is None for fusion in distiller.fusions.values()] == [False, True]


def test_finer_levels_learn_through_the_coarser_and_not_the_other_way(scene):
    sc = scene(False)
    distiller = ReviewKD(sc.levels, mid=4)
    outs = {}
    for name, fusion in distiller.fusions.items():
        fusion.register_forward_hook(lambda _, args, out, name=name: outs.update({name: out[0]}))
    distiller(*sc.args())
    fine, coarse = (
        torch.autograd.grad(
            outs[name].square().sum() + outs[name].pow(3).sum(),
            list(sc.student.maps.values()),
            retain_graph=True,
            allow_unused=True,
        )
        for name in ("p3", "p4")
    )
    assert fine[0].any() and fine[1].any()
    assert coarse[0] is None and coarse[1].any()


def test_a_single_level_is_its_own_top(scene):
    sc = scene()
    distiller = ReviewKD(sc.levels[:1], mid=4)
    distiller(*sc.args())["loss_reviewkd"].backward()
    assert all(p.grad is not None for p in distiller.parameters())


def test_a_batch_of_one_cell_has_no_moments_and_passes():
    torch.manual_seed(0)
    distiller = ReviewKD([Level("p6", "q6", 64, 3, 5)], mid=4)
    before = {name: x.clone() for name, x in distiller.named_buffers()}
    student = Features({"p6": torch.randn(1, 3, 1, 1, requires_grad=True)}, {"p6": 64})
    loss = distiller(student, Features({"q6": torch.randn(1, 5, 1, 1)}, {"q6": 64}))
    loss["loss_reviewkd"].backward()
    assert student.maps["p6"].grad.abs().sum() > 0
    assert all(torch.equal(x, before[name]) for name, x in distiller.named_buffers())

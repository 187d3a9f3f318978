"""FGD against its formulas, cell by cell."""

import math

import pytest
import torch

from dpk_det.distill import Targets
from dpk_det.distill.baselines.fgd import FGD, GlobalContext, attention, box_shares
from dpk_det.errors import UserError

WEIGHTS = {"alpha": 0.5, "beta": 0.3, "gamma": 0.2, "lambda_": 0.7, "temperature": 0.8}


def slow_shares(boxes, stride, height, width):
    """For each cell 1 over the area of the smallest box around it, 0 where there is none."""
    shares = [[0.0] * width for _ in range(height)]
    for left, top, right, bottom in boxes:
        first = math.floor(left / stride), math.floor(top / stride)
        last = math.ceil(right / stride), math.ceil(bottom / stride)
        for row in range(height):
            for col in range(width):
                if first[1] <= row < last[1] and first[0] <= col < last[0]:
                    area = (last[0] - first[0]) * (last[1] - first[1])
                    shares[row][col] = max(shares[row][col], 1 / area)
    return shares


def softmax(values):
    exps = [v.exp() for v in values]
    return [e / sum(exps) for e in exps]


def slow_attention(x, temperature):
    """Of one map (C, H, W): H W softmax(G^S / T) as rows of cells, and C softmax(G^C / T)."""
    channels, height, width = x.shape
    cells = [
        x[:, r, c].abs().sum() / channels / temperature for r in range(height) for c in range(width)
    ]
    cells = [height * width * v for v in softmax(cells)]
    means = [x[c].abs().sum() / (height * width) / temperature for c in range(channels)]
    return [cells[r * width : (r + 1) * width] for r in range(height)], [
        channels * v for v in softmax(means)
    ]


def slow_context(block, x):
    """GcNet's block of one map: what is added to every cell."""
    weight, bias = block.attend.weight.double()[0, :, 0, 0], block.attend.bias.double()
    cells = x.flatten(1).T
    shares = softmax([weight @ cell + bias[0] for cell in cells])
    context = sum(s * cell for s, cell in zip(shares, cells, strict=True))
    first, norm, _, last = block.transform
    hidden = first.weight.double() @ context + first.bias.double()
    mean = hidden.mean()
    hidden = (hidden - mean) / (((hidden - mean) ** 2).mean() + norm.eps).sqrt()
    hidden = (hidden * norm.weight.double() + norm.bias.double()).clamp(min=0)
    return last.weight.double() @ hidden + last.bias.double()


def slow(distiller, scene, adapt):
    """The three losses."""
    focal = likeness = context = 0
    for level in scene.levels:
        name = level.student
        for (s, t), boxes in zip(scene.images(level), scene.targets.boxes, strict=True):
            s = adapt(distiller.adapters[name], s)
            height, width = t.shape[1:]
            (s_cells, s_channels), (t_cells, t_channels) = (
                slow_attention(x, distiller.temperature) for x in (s, t)
            )
            shares = slow_shares(boxes.tolist(), level.stride, height, width)
            background = sum(share == 0 for row in shares for share in row)
            for r in range(height):
                for c in range(width):
                    weight = distiller.alpha * shares[r][c] or distiller.beta / background
                    error = sum(
                        share * (s[k, r, c] - t[k, r, c]) ** 2 for k, share in enumerate(t_channels)
                    )
                    focal = focal + weight * t_cells[r][c] * error
                    likeness = likeness + (s_cells[r][c] - t_cells[r][c]).abs()
            for a, b in zip(s_channels, t_channels, strict=True):
                likeness = likeness + (a - b).abs()
            s, t = (
                x + slow_context(block[name], x)[:, None, None]
                for block, x in ((distiller.student_context, s), (distiller.teacher_context, t))
            )
            context = context + ((s - t) ** 2).sum()
    return {
        "loss_fgd_focal": focal / 2,
        "loss_fgd_attention": distiller.gamma * likeness / 2,
        "loss_fgd_global": distiller.lambda_ * context / 2,
    }


@pytest.mark.parametrize(("padded", "widths"), [(False, (3, 5)), (True, (4, 4)), (True, (2, 6))])
def test_it_is_the_papers_formula(scene, shake, adapt, agree, padded, widths):
    sc = scene(padded, widths)
    distiller = shake(FGD(sc.levels, **WEIGHTS))
    got, want = distiller(*sc.args()), slow(distiller, sc, adapt)
    assert list(got) == list(want)
    for name, loss in got.items():
        assert loss.item() == pytest.approx(want[name].item(), rel=1e-4), name
    agree(distiller, sc, sum(got.values()), sum(want.values()))


def test_an_image_beside_a_larger_one_counts_as_alone(scene, shake):
    sc = scene()
    distiller = shake(FGD(sc.levels, **WEIGHTS))
    ones = [distiller(*sc.alone(i).args()) for i in range(2)]
    for name, loss in distiller(*sc.args()).items():
        want = (ones[0][name] + ones[1][name]).item() / 2
        assert loss.item() == pytest.approx(want, rel=1e-5), name


def test_equal_maps_have_no_loss_at_first(scene):
    sc = scene(widths=(4, 4))
    sc.teacher.maps = {f"q{name[1]}": x.detach() for name, x in sc.student.maps.items()}
    assert all(loss == 0 for loss in FGD(sc.levels)(*sc.args()).values())


# ------------------------------------------------------------------ attention


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("extents", [None, [(4, 2), (1, 6)]])
def test_attention_sums_to_the_number_of_cells_and_of_channels(extents, temperature):
    x = torch.randn(2, 3, 5, 6)
    cells = None
    if extents:
        cells = torch.zeros(2, 5, 6, dtype=torch.bool)
        for mask, (h, w) in zip(cells, extents, strict=True):
            mask[:h, :w] = True
        x = x.where(cells.unsqueeze(1), 0)
    where, channels = attention(x, cells, temperature)
    assert where.shape == (2, 5, 6) and channels.shape == (2, 3)
    want = [h * w for h, w in extents] if extents else [30, 30]
    assert where.sum((1, 2)).tolist() == pytest.approx(want, rel=1e-5)
    assert channels.sum(1).tolist() == pytest.approx([3, 3], rel=1e-5)
    if extents:
        assert not where[~cells].any()
    for i in range(2):
        h, w = extents[i] if extents else (5, 6)
        rows, shares = slow_attention(x[i, :, :h, :w].double(), temperature)
        rows = torch.tensor(rows)
        torch.testing.assert_close(where[i, :h, :w], rows.float())
        torch.testing.assert_close(channels[i], torch.stack(shares).float())


# ------------------------------------------------------------------ boxes


@pytest.mark.parametrize("stride", [4, 8, 32])
def test_box_shares_equal_the_loop(stride):
    g = torch.Generator().manual_seed(stride)
    for _ in range(20):
        corners = torch.rand(5, 2, 2, generator=g) * 90 - 10
        boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
        boxes = boxes[: int(torch.randint(6, (), generator=g))]
        want = slow_shares(boxes.tolist(), stride, 6, 9)
        torch.testing.assert_close(box_shares(boxes, stride, (6, 9)), torch.tensor(want))


def test_a_cell_of_several_boxes_counts_for_the_smallest():
    boxes = torch.tensor([[0.0, 0, 32, 32], [8.0, 8, 24, 16], [8.0, 8, 16, 16]])
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        shares = box_shares(boxes[order], 8, (4, 5))
        assert shares[1, 1] == 1 and shares[1, 2] == 1 / 2
        assert shares[0, 0] == shares[1, 0] == shares[3, 3] == 1 / 16
        assert not shares[:, 4].any()


def test_edges_are_rounded_outwards():
    shares = box_shares(torch.tensor([[7.9, 8.1, 16.1, 15.9]]), 8, (4, 4))
    assert shares.nonzero().tolist() == [[1, 0], [1, 1], [1, 2]]
    assert shares.sum().item() == pytest.approx(1)
    # a box on the lines covers what they enclose
    assert box_shares(torch.tensor([[8.0, 8, 16, 16]]), 8, (4, 4)).nonzero().tolist() == [[1, 1]]


def test_a_box_beyond_the_image_counts_by_its_whole_area():
    shares = box_shares(torch.tensor([[-16.0, 8, 16, 80]]), 8, (4, 4))
    assert shares.nonzero().tolist() == [[r, c] for r in (1, 2, 3) for c in (0, 1)]
    assert set(shares[shares > 0].tolist()) == {torch.tensor(1 / 36).item()}
    assert not box_shares(torch.tensor([[100.0, 100, 200, 200]]), 8, (4, 4)).any()


def test_an_image_without_boxes_is_all_background(scene):
    sc = scene(False, (4, 4))
    sc.targets = Targets([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2)
    level = sc.levels[0]
    got = FGD([level], **WEIGHTS)(*sc.args())["loss_fgd_focal"]
    want = 0
    for s, t in sc.images(level):
        cells, channels = slow_attention(t, 0.8)
        for k, share in enumerate(channels):
            error = (s[k] - t[k]) ** 2 * torch.stack([torch.stack(row) for row in cells])
            want = want + share * error.sum()
    assert got.item() == pytest.approx(0.3 / 64 * want.item() / 2, rel=1e-4)


def test_an_image_that_is_all_object_has_no_background(scene):
    sc = scene(False, (4, 4))
    sc.targets.boxes = [torch.tensor([[0.0, 0, 64, 64]])] * 2
    losses = FGD(sc.levels, **{**WEIGHTS, "alpha": 0.0})(*sc.args())
    assert losses["loss_fgd_focal"] == 0


def test_images_without_targets_are_an_error(scene):
    sc = scene()
    with pytest.raises(UserError, match="FGD tells objects by their boxes, but these images have"):
        FGD(sc.levels)(sc.student, sc.teacher, None)


# ------------------------------------------------------------------ the global part


def test_the_context_block_adds_nothing_at_first_and_the_same_to_all_cells_later(shake):
    block, x = GlobalContext(6), torch.randn(2, 6, 4, 5)
    assert torch.equal(block(x, None), x)
    added = shake(block)(x, None) - x
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-5)
    assert added.abs().max() > 0.01


def test_the_context_block_of_one_channel_works():
    assert GlobalContext(1)(torch.randn(1, 1, 2, 2), None).shape == (1, 1, 2, 2)


def test_student_and_teacher_have_context_blocks_of_their_own(scene):
    distiller = FGD(scene().levels)
    blocks = [*distiller.student_context.values(), *distiller.teacher_context.values()]
    assert len({id(block) for block in blocks}) == 4
    assert not torch.equal(blocks[0].attend.weight, blocks[2].attend.weight)

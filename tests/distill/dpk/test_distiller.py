"""The DPK distiller against a slow reference, one image at a time, and at the edges of shape."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dpk_det.distill import Features, Level, build_distiller, linear_cka
from dpk_det.distill.contract import PairedMaps
from dpk_det.distill.dpk.mask import MASKS, take_prior
from dpk_det.distill.dpk.samples import LevelView
from dpk_det.distill.dpk.tokens import sincos_positions
from dpk_det.distill.regression import TARGETS
from dpk_det.errors import UserError

CS, CT, STRIDE = 3, 5, 8
P3 = Level("p3", "q3", STRIDE, CS, CT)


def build(levels=(P3,), fresh=False, **kw):
    """A small DPK; unless fresh, with no weight left at 0 or 1, where mistakes would hide."""
    torch.manual_seed(0)
    small = {"dim": 16, "heads": 2, "token_stride": 2 * STRIDE, "encoder_depth": 1, "cka_every": 1}
    dpk = build_distiller(
        {"dpk": {**small, "weight": 1.0, "target": "relative", **kw}}, levels
    ).methods["dpk"]
    if not fresh:
        with torch.no_grad():
            for p in dpk.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return dpk


def one_level(student, teacher, sizes=None):
    """Features of the one level P3."""
    return Features({"p3": student}, {"p3": 8}, sizes), Features({"q3": teacher}, {"q3": 8}, sizes)


def maps(batch, height, width, cs=CS, ct=CT, seed=0):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, cs, height, width, generator=g)
    return student, torch.randn(batch, ct, height, width, generator=g)


def watch_mask(completion):
    """Let the mask draw as ever, and note what it was given, the ratio, and what took the prior."""
    seen, ratios, draw = [], [], completion.mask

    def mask(valid):
        line = draw(valid)
        seen.append((valid, ratios[-1], take_prior(line, valid.flatten(1), ratios[-1])))
        return line

    completion.mask = mask
    completion.register_forward_pre_hook(lambda _, args: ratios.append(args[2]))
    return seen


# ------------------------------------------------------------------ the slow reference


def embed(conv, x, k):
    """One image (C, H, W) to a dict of tokens by (row, column), by matrix products."""
    h, w = math.ceil(x.shape[1] / k), math.ceil(x.shape[2] / k)
    padded = x.new_zeros(x.shape[0], h * k, w * k)
    padded[:, : x.shape[1], : x.shape[2]] = x
    codes = sincos_positions(h, w, conv.weight.shape[0], x.device)
    return {
        (r, c): conv.weight.flatten(1) @ padded[:, r * k : r * k + k, c * k : c * k + k].flatten()
        + conv.bias
        + codes[r * w + c]
        for r in range(h)
        for c in range(w)
    }


def encode(encoder, tokens):
    """Encode the tokens of a dict with nothing beside them."""
    if not tokens:
        return {}
    out = encoder(torch.stack(list(tokens.values()))[None])[0]
    return dict(zip(tokens, out, strict=True))


def slow_shortcut(dpk, students):
    """What the shortcut adds to each image's completed map."""
    (completion,) = dpk.completions.values()
    if completion.shortcut is None:
        return [0] * len(students)
    added = students
    if not isinstance(completion.shortcut, nn.Identity):
        weight, bias = completion.shortcut.weight[:, :, 0, 0], completion.shortcut.bias
        added = [torch.einsum("ts,shw->thw", weight, s) + bias[:, None, None] for s in students]
    if dpk.target is TARGETS["standard"]:
        cells = torch.cat([x.flatten(1) for x in added], 1)
        mean = cells.mean(1)
        var = (cells - mean[:, None]).square().mean(1)
        added = [(x - mean[:, None, None]) / (var + 1e-6).sqrt()[:, None, None] for x in added]
    return added


def slow_complete(completion, student, teacher, takes_prior):
    """Complete one image's maps, cut to what is not padding; without the shortcut."""
    k, (height, width) = completion.patch, student.shape[1:]
    w = math.ceil(width / k)
    own = embed(completion.student_embed, student, k)
    if completion.has_prior:
        prior = embed(completion.teacher_embed, teacher, k)
        prior = {at: x for at, x in prior.items() if takes_prior[at]}
        prior = encode(completion.teacher_encoder, prior)
    else:
        prior = {at: completion.blank for at in own if takes_prior[at]}
    own = {at: x for at, x in own.items() if not takes_prior[at]}
    hybrid = encode(completion.student_encoder, own) | prior
    codes = sincos_positions(math.ceil(height / k), w, completion.decoder.norm.bias.numel(), "cpu")
    hybrid = {(r, c): x + codes[r * w + c] for (r, c), x in hybrid.items()}
    out = teacher.new_empty(teacher.shape)
    weight, bias = completion.expand.weight, completion.expand.bias
    for (r, c), token in encode(completion.decoder, hybrid).items():
        for u in range(min(k, height - r * k)):
            for v in range(min(k, width - c * k)):
                out[:, r * k + u, c * k + v] = token @ weight[:, :, u, v] + bias
    return out


def channel_moments(teacher, extents):
    """Mean and variance of each channel over the cells that are not padding, by numpy."""
    cells = zip(teacher.double().numpy(), extents, strict=True)
    cells = np.concatenate([t[:, :h, :w].reshape(len(t), -1) for t, (h, w) in cells], 1)
    return cells.mean(1), cells.var(1)


def standardise(teacher, extents):
    """Each channel to mean 0 and deviation 1."""
    mean, var = (torch.from_numpy(z)[:, None, None] for z in channel_moments(teacher, extents))
    return ((teacher - mean) / (var + 1e-6).sqrt()).float()


def slow_loss(dpk, student, teacher, extents, drawn):
    """Mean squared error over all valid cells of a batch that count, image by image."""
    (completion,) = dpk.completions.values()
    target, scale = teacher, 1
    if dpk.target is TARGETS["standard"]:
        target = standardise(teacher, extents)
    if dpk.target is TARGETS["relative"]:
        scale = 1 / (channel_moments(teacher, extents)[1].mean() + 1e-6)
    grid = [math.ceil(x / completion.patch) for x in student.shape[2:]]
    total, cells = 0.0, 0
    shortcut = [s[:, :h, :w] for s, (h, w) in zip(student, extents, strict=True)]
    shortcut = slow_shortcut(dpk, shortcut)
    images = zip(student, teacher, target, extents, drawn, shortcut, strict=True)
    for s, t, y, (h, w), row, added in images:
        # a map of one token is completed beside a token of padding
        row = row[:1] if grid == [1, 1] else row
        out = added + slow_complete(completion, s[:, :h, :w], t[:, :h, :w], row.view(*grid))
        error = (out - y[:, :h, :w]).square().mean(0)
        for r in range(h):
            for c in range(w):
                taken = row.view(*grid)[r // completion.patch, c // completion.patch]
                if not (dpk.errs_at_student and taken):
                    total = total + error[r, c]
                    cells += 1
    return scale * total / cells


REFERENCES = {
    "even": (2, 8, 8, None, 16),
    "batch of one": (1, 6, 4, None, 16),
    "odd": (2, 5, 7, None, 16),
    "patch 4": (2, 9, 6, None, 32),
    "patch 1": (2, 4, 3, None, 8),
    "one token": (2, 2, 2, None, 16),
    "one cell": (2, 1, 1, None, 16),
    "one cell, padded": (2, 2, 2, [(16, 16), (8, 5)], 16),
    "two tokens": (1, 1, 3, None, 16),
    "two by two tokens": (2, 3, 4, None, 16),
    "padded": (3, 8, 8, [(64, 64), (33, 50), (17, 64)], 16),
    "all padded": (2, 7, 9, [(50, 41), (9, 66)], 16),
    "padded to one cell": (3, 6, 6, [(48, 48), (3, 8), (16, 16)], 16),
    "padded, patch 4": (2, 9, 10, [(72, 70), (40, 33)], 32),
}


SETTINGS = [
    ("raw", 0.4, False, CS, {}),
    ("raw", 1.0, True, CT, {}),
    ("relative", 0.0, True, CS, {}),
    ("relative", 0.4, True, CT, {}),
    ("standard", 0.4, True, CS, {}),
    ("standard", 1.0, False, CT, {}),
]
OPTIONS = [
    ("raw", 0.4, True, CS, {"prior": False}),
    ("raw", 0.4, True, CS, {"positions": "student"}),
    ("relative", 1.0, False, CT, {"positions": "student", "prior": False, "mask": "block"}),
    ("raw", 0.25, False, CS, {"positions": "student", "mask": "grid"}),
    ("standard", 0.4, True, CS, {"encoder_depth": 0}),
]
HARD = ["odd", "one token", "one cell, padded", "two tokens", "padded", "padded to one cell"]


@pytest.mark.parametrize(
    ("case", "target", "ratio", "shortcut", "cs", "more"),
    [(case, *setting) for setting in SETTINGS for case in REFERENCES]
    + [(case, *setting) for setting in OPTIONS for case in HARD],
)
def test_loss_and_gradients_equal_the_slow_reference(case, target, ratio, shortcut, cs, more):
    batch, height, width, sizes, token_stride = REFERENCES[case]
    if target == "relative" and batch * height * width == 1:
        pytest.skip("one cell has no variance to be relative to")
    dpk = build(
        [Level("p3", "q3", STRIDE, cs, CT)],
        **{"ratio": "fixed", "ratio_fixed": ratio, "weight": 2.5, "token_stride": token_stride},
        **{"target": target, "shortcut": shortcut, **more},
    )
    seen = watch_mask(dpk.completions["p3"])
    student, teacher = maps(batch, height, width, cs)
    teacher = 3 * teacher + 1
    student.requires_grad_()
    wrt = [student, *dpk.parameters()]

    loss = dpk(*one_level(student, teacher, sizes))["loss_dpk"]
    got = torch.autograd.grad(loss, wrt)
    extents = [(height, width)] * batch
    if sizes:
        extents = [(math.ceil(h / STRIDE), math.ceil(w / STRIDE)) for h, w in sizes]
    want = 2.5 * slow_loss(dpk, student, teacher, extents, seen[0][2])
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    wants = torch.autograd.grad(want, wrt, allow_unused=True)
    for g, w in zip(got, wants, strict=True):
        # the reference leaves out what no valid token uses
        torch.testing.assert_close(g, torch.zeros_like(g) if w is None else w, rtol=2e-3, atol=2e-5)


# ------------------------------------------------------------------ targets


def test_relative_loss_is_alike_for_teachers_of_any_scale_and_mean():
    losses = []
    for factor in (1.0, 30.0):
        dpk = build([Level("p3", "q3", STRIDE, CT, CT)], fresh=True)  # adds nothing to the student
        student, teacher = maps(2, 8, 8, CT)
        features = one_level(factor * student + 7, factor * teacher + 7)
        losses.append(dpk(*features)["loss_dpk"].item())
    assert losses[0] == pytest.approx(2, rel=0.1)  # variances 1 and 1 apart from each other
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("case", ["one cell", "constant teacher"])
def test_relative_loss_of_a_map_without_variance_does_not_explode(case):
    # the last level of one small image is a single cell: nothing in it varies
    student, teacher = maps(1, 1, 1) if case == "one cell" else maps(2, 8, 8)
    if case == "constant teacher":
        teacher = torch.full_like(teacher, 3.0)
    loss = build(target="relative")(*one_level(student, teacher))["loss_dpk"]
    assert loss < 1000  # as against about 1 for maps of this kind that do vary


# ------------------------------------------------------------------ padding


@pytest.mark.parametrize("junk", ["noise", "nan"])
@pytest.mark.parametrize(
    ("target", "shortcut"), [("raw", False), ("relative", True), ("standard", True)]
)
@pytest.mark.parametrize("patch", [1, 2])
def test_what_lies_in_padding_has_no_influence(patch, target, shortcut, junk):
    sizes = [(64, 40), (25, 64), (1, 1)]
    student, teacher = maps(3, 8, 8)
    padding = torch.ones(3, 8, 8, dtype=torch.bool)
    for mask, (h, w) in zip(padding, sizes, strict=True):
        mask[: math.ceil(h / STRIDE), : math.ceil(w / STRIDE)] = False
    results = []
    for dirty in (False, True):
        s, t = student.clone(), teacher.clone()
        for x in (s, t) if dirty else ():
            fill = 100 * torch.randn_like(x) if junk == "noise" else torch.full_like(x, torch.nan)
            x[padding.unsqueeze(1).expand_as(x)] = fill[padding.unsqueeze(1).expand_as(x)]
        s.requires_grad_()
        args = {"target": target, "shortcut": shortcut, "ratio": "fixed"}
        dpk = build(token_stride=patch * STRIDE, **args)
        loss = dpk(*one_level(s, t, sizes))["loss_dpk"]
        loss.backward()
        in_padding = s.grad.permute(0, 2, 3, 1)[padding]
        assert in_padding.count_nonzero() == 0
        assert s.grad.permute(0, 2, 3, 1)[~padding].any(1).float().mean() > 0.3
        grads = [p.grad for p in dpk.parameters()]
        results.append([loss, s.grad, dpk.cka.terms, *dpk.metrics.values(), *grads])
    for clean, dirty in zip(*results, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, dirty)


def test_padding_to_a_larger_batch_keeps_the_loss_and_cka():
    # an image alone, and the same padded as beside a larger one; the same tokens take the prior
    student, teacher = maps(1, 4, 6)
    wide = [F.pad(x, (0, 4, 0, 2), value=9.0) for x in (student, teacher)]
    losses, ckas = [], []
    for s, t, sizes in ((student, teacher, None), (*wide, [(32, 48)])):
        dpk = build(target="raw")

        def first_in_line(valid):
            line = torch.ones(1, valid.numel())
            line[0, valid.flatten().nonzero()[[0, 3, 4], 0]] = 0
            return line

        dpk.completions["p3"].mask = first_in_line
        dpk.schedule = lambda cka, *_: cka.new_full(cka.shape, 0.5)
        losses.append(dpk(*one_level(s, t, sizes))["loss_dpk"])
        ckas.append(dpk.metrics["dpk/cka_p3"])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(ckas[0], ckas[1])


# ------------------------------------------------------------------ gradients


RATIOS_AND_SHAPES = [
    (ratio, size, *batch)
    for ratio in (0.0, 0.3, 1.0)
    for size in ((1, 1), (2, 1), (2, 2), (3, 4), (7, 5), (16, 16))
    for batch in ((1, False), (2, False), (2, True))
]


@pytest.mark.parametrize(
    ("more", "ratio", "size", "batch", "padded"),
    [({"shortcut": x}, *shape) for x in (False, True) for shape in RATIOS_AND_SHAPES]
    + [
        (more, ratio, size, 2, True)
        for more in (
            {"prior": False},
            {"mask": "block", "positions": "student", "target": "standard", "shortcut": False},
            {"mask": "grid", "prior": False, "positions": "student"},
        )
        for ratio in (0.0, 1.0)
        for size in ((1, 1), (2, 2), (7, 5))
    ],
)
def test_every_parameter_has_a_gradient_at_every_ratio(more, batch, padded, size, ratio):
    # DistributedDataParallel waits for each
    dpk = build(ratio="fixed", ratio_fixed=ratio, **more)
    student, teacher = maps(batch, *size)
    student.requires_grad_(), teacher.requires_grad_()
    height, width = (STRIDE * x for x in size)
    sizes = [(height, width), (max(height - 9, 1), 1)] if padded else None
    losses = dpk(*one_level(student, teacher, sizes))
    losses["loss_dpk"].backward()
    tokens = math.ceil(size[0] / 2) * math.ceil(size[1] / 2)
    for name, p in dpk.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert tokens == 1 or p.grad.any(), name  # one token is the student's: the teacher's waits
    assert student.grad.any()
    assert teacher.grad is None


def test_the_only_token_of_a_map_is_the_students():
    dpk = build(ratio="fixed", ratio_fixed=1.0)
    student, teacher = maps(2, 2, 2)
    out = [
        dpk.completions["p3"](student, t, 1.0, None) for t in (teacher, torch.randn_like(teacher))
    ]
    assert out[0][0].shape == teacher.shape
    assert torch.equal(out[0][0], out[1][0])
    assert not out[0][1][:, 0, 0].any()


def test_prior_tokens_take_nothing_from_the_student():
    dpk = build(shortcut=False)
    seen = watch_mask(dpk.completions["p3"])
    student, teacher = maps(2, 8, 8)
    student.requires_grad_()
    out, given = dpk.completions["p3"](student, teacher, 0.4, None)
    out.square().sum().backward()
    drawn = seen[0][2].view(2, 4, 4)
    used = student.grad.any(1)
    assert torch.equal(used, ~drawn.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(given, drawn)


def test_the_given_tokens_and_their_cells_are_told_at_any_size():
    dpk = build()
    seen = watch_mask(dpk.completions["p3"])
    valid = torch.ones(3, 3, 4, dtype=torch.bool)
    valid[1, 2:] = valid[2, :, 1:] = False
    student, teacher = maps(3, 5, 7)
    _, given = dpk.completions["p3"](student, teacher, 0.4, valid)
    taken = seen[0][2].view(3, 3, 4)
    assert torch.equal(given, taken)
    view = LevelView(PairedMaps(dpk.levels[0], student, teacher, [(5, 7)] * 3), 2)
    want = [[[taken[i, r // 2, c // 2] for c in range(7)] for r in range(5)] for i in range(3)]
    assert torch.equal(view.to_cells(given), torch.tensor(want))


@pytest.mark.parametrize("cs", [CS, CT])
def test_shortcut_starts_from_the_students_map(cs):
    dpk = build([Level("p3", "q3", STRIDE, cs, CT)], fresh=True)
    completion = dpk.completions["p3"]
    student, teacher = maps(2, 5, 7, cs)
    out, _ = completion(student, teacher, 0.4, None)
    if cs == CT:
        assert torch.equal(out, student)
        assert dpk(*one_level(student, student))["loss_dpk"] == 0
    else:
        assert torch.equal(out, completion.shortcut(student))
    # the transformer is cut off at first, but not for good
    out.square().mean().backward()
    assert completion.expand.weight.grad.any()


@pytest.mark.parametrize("sizes", [None, [(64, 40), (25, 64)]])
def test_the_standard_target_leaves_the_student_its_own_scale_and_mean(sizes):
    dpk = build([Level("p3", "q3", STRIDE, CT, CT)], fresh=True, target="standard")
    student, _ = maps(2, 8, 8, CT)
    scale, offset = torch.tensor([0.1, 1, 2, 5, 30]).view(CT, 1, 1), torch.ones(CT, 1, 1)
    teacher = scale * student + 10 * offset
    assert dpk(*one_level(student, teacher, sizes))["loss_dpk"].item() == pytest.approx(0, abs=1e-4)
    assert dpk(*one_level(student, -teacher, sizes))["loss_dpk"].item() == pytest.approx(
        4, abs=0.01
    )


def test_without_shortcut_the_student_comes_in_through_its_tokens_alone():
    completion = build(shortcut=False, fresh=True).completions["p3"]
    assert completion.shortcut is None and completion.expand.weight.any()
    student, teacher = maps(1, 8, 8)
    completion.mask = lambda valid: -torch.arange(16.0)[None]  # all but the first are prior's
    outs = []
    for s in (student, student.clone()):
        s[:, :, 2:] += len(outs)  # outside the one token
        outs.append(completion(s, teacher, 1.0, None)[0])
    assert torch.equal(*outs)


def test_teacher_is_no_part_of_the_graph():
    dpk = build()
    student, source = maps(2, 8, 8)
    teacher = nn.Conv2d(CT, CT, 1)
    dpk(*one_level(student, teacher(source)))["loss_dpk"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert dpk.metrics and not any(m.requires_grad for m in dpk.metrics.values())


@pytest.mark.parametrize("args", [{}, {"target": "raw", "shortcut": False}])
def test_a_tiny_optimisation_lowers_the_loss(args):
    dpk = build(ratio="fixed", ratio_fixed=0.5, fresh=True, **args)
    net = nn.Conv2d(CT, CS, 1)
    _, teacher = maps(2, 8, 8)
    optimizer = torch.optim.Adam([*dpk.parameters(), *net.parameters()], 1e-2)
    losses = []
    for _ in range(40):
        loss = dpk(*one_level(net(teacher), teacher))["loss_dpk"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:2])


# ------------------------------------------------------------------ without a prior


def test_without_prior_the_student_completes_itself():
    dpk = build(prior=False, ratio="fixed")
    completion = dpk.completions["p3"]
    assert not [name for name, _ in dpk.named_parameters() if "teacher" in name]
    assert completion.blank.shape == (16,)
    student, teacher = maps(2, 8, 8)
    outs = []
    for t in (teacher, torch.randn_like(teacher)):
        torch.manual_seed(3)
        outs.append(completion(student, t, 0.5, None)[0])
    assert torch.equal(*outs)
    losses = []
    for t in (teacher, torch.randn_like(teacher)):
        losses.append(dpk(*one_level(student, t))["loss_dpk"])
    assert losses[0] != losses[1]  # it is the teacher's map all the same that is to be had


def test_with_prior_the_teacher_shows_and_there_is_no_blank():
    completion = build().completions["p3"]
    assert not hasattr(completion, "blank")
    student, teacher = maps(2, 8, 8)
    outs = []
    for t in (teacher, torch.randn_like(teacher)):
        torch.manual_seed(3)
        outs.append(completion(student, t, 0.5, None)[0])
    assert not torch.equal(*outs)


@pytest.mark.parametrize("prior", [True, False])
def test_mixed_precision_without_prior_is_finite(prior):
    dpk = build(prior=prior)
    student, teacher = maps(2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = dpk(*one_level(student, teacher, [(64, 50), (30, 64)]))["loss_dpk"]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in dpk.parameters())


# ------------------------------------------------------------------ the loss


def divergence(out, target, extents):
    """CWD's formula in float64: each channel of each image a distribution over its cells."""
    found = []
    for s, t, (h, w) in zip(out.double(), target.double(), extents, strict=True):
        p, q = (x[:, :h, :w].flatten(1).softmax(1) for x in (t, s))
        found += [(a * (a / b).log()).sum() for a, b in zip(p, q, strict=True)]
    return sum(found) / len(found)


@pytest.mark.parametrize("sizes", [None, [(64, 48), (33, 64)]])
@pytest.mark.parametrize("target", ["raw", "standard"])
def test_the_loss_of_cwd_compares_the_completed_map_channel_by_channel(sizes, target):
    student, teacher = (x.requires_grad_(x.shape[1] == CS) for x in maps(2, 8, 8))
    dpk = build(target=target, loss="cwd", weight=2.0, ratio="fixed", ratio_fixed=0.25)
    line = torch.arange(16.0).expand(2, 16)
    dpk.completions["p3"].mask = lambda valid: line
    cells = dpk_cells(sizes)
    out, _ = dpk.completions["p3"](
        *(x.where(cells, 0) for x in (student, teacher)),
        0.25,
        dpk_tokens(sizes),
        cells[:, 0] if sizes else None,
    )
    extents = [(8, 6), (5, 8)] if sizes else [(8, 8)] * 2
    want = divergence(
        out, standardise(teacher, extents) if target == "standard" else teacher, extents
    )
    losses = dpk(*one_level(student, teacher, sizes))
    assert losses["loss_dpk"].item() == pytest.approx(2 * want.item(), rel=1e-4)
    losses["loss_dpk"].backward()
    assert student.grad.isfinite().all() and student.grad.any()


# ------------------------------------------------------------------ positions


@pytest.mark.parametrize("sizes", [None, [(64, 48), (33, 64)]])
def test_positions_of_the_student_count_only_cells_without_prior(sizes):
    student, teacher = maps(2, 8, 8)
    dpk = build(target="raw", positions="student", ratio="fixed", ratio_fixed=0.25)
    line = torch.arange(16.0).flip(0).expand(2, 16)  # the last valid tokens are the first in line
    dpk.completions["p3"].mask = lambda valid: line
    cells = torch.zeros(2, 8, 8, dtype=torch.bool)
    if sizes:  # 4 x 3 and 3 x 4 tokens: the last three of each
        cells[0, :, :6] = cells[1, :5] = True
        cells[0, 6:, :] = False
        cells[1, 4:, 2:] = False
    else:
        cells[:, :6] = True
    out, _ = dpk.completions["p3"](
        *(x.where(dpk_cells(sizes), 0) for x in (student, teacher)), 0.25, dpk_tokens(sizes)
    )
    want = (out - teacher).square().mean(1)[cells].mean()
    loss = dpk(*one_level(student, teacher, sizes))["loss_dpk"]
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)


def dpk_cells(sizes):
    """(2, 1, 8, 8) bool, the cells that are not padding."""
    cells = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes or []):
        cells[i, :, math.ceil(h / 8) :] = cells[i, :, :, math.ceil(w / 8) :] = False
    return cells


def dpk_tokens(sizes):
    """(2, 4, 4) bool, the tokens of 2 x 2 cells that are not padding."""
    return F.max_pool2d(dpk_cells(sizes).float(), 2)[:, 0].bool() if sizes else None


# ------------------------------------------------------------------ the gap


def test_equal_networks_have_cka_one_and_the_ratio_zero():
    dpk = build([Level("p3", "q3", STRIDE, CT, CT)])
    seen = watch_mask(dpk.completions["p3"])
    _, x = maps(2, 8, 8)
    dpk(*one_level(x.clone(), x))
    assert dpk.metrics["dpk/cka_p3"].item() == pytest.approx(1, abs=1e-5)
    assert dpk.metrics["dpk/ratio_p3"].item() == pytest.approx(0, abs=1e-5)
    assert seen[0][1] == pytest.approx(0, abs=1e-5)


def test_unrelated_networks_have_a_ratio_near_one():
    student, teacher = maps(4, 32, 32)
    dpk = build()
    dpk(*one_level(student, teacher))
    assert 0.97 <= dpk.metrics["dpk/ratio_p3"].item() <= 1
    assert abs(dpk.metrics["dpk/cka_p3"].item()) < 0.03


@pytest.mark.parametrize("sizes", [None, [(56, 56)] * 8, [(50, 41), (56, 20)] * 4])
def test_tokens_on_the_border_do_not_make_unrelated_networks_alike(sizes):
    # 7 cells are no whole number of patches: what stands outside must not lower both means alike
    student, teacher = maps(8, 7, 7)
    dpk = build()
    dpk(*one_level(student + 3, teacher + 3, sizes))
    assert abs(dpk.metrics["dpk/cka_p3"].item()) < 0.1


@pytest.mark.parametrize("sizes", [None, [(72, 90), (33, 64)]])
def test_cka_is_that_of_each_valid_tokens_mean_feature(sizes):
    batch, height, width, k = 2, 9, 12, 2
    student, teacher = maps(batch, height, width)
    mix = torch.randn(CT, CS, generator=torch.Generator().manual_seed(1))
    teacher = teacher + torch.einsum("tc,bchw->bthw", mix, student) + 2
    rows = []
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        h, w = (math.ceil(x / STRIDE) for x in sizes[i]) if sizes else (height, width)
        for r in range(0, h, k):
            for c in range(0, w, k):
                down, along = slice(r, min(r + k, h)), slice(c, min(c + k, w))
                rows.append([x[:, down, along].mean((1, 2)) for x in (s, t)])
    x, y = (torch.stack(z) for z in zip(*rows, strict=True))
    want = linear_cka(x, y).item()
    assert 0.1 < want < 0.9
    dpk = build()
    dpk(*one_level(student, teacher, sizes))
    assert dpk.metrics["dpk/cka_p3"].item() == pytest.approx(want, rel=1e-4)
    assert dpk.metrics["dpk/ratio_p3"].item() == pytest.approx(1 - want, abs=1e-4)


def related_maps(seed):
    student, teacher = maps(2, 8, 8, seed=seed)
    return student, teacher + seed * student.mean(1, keepdim=True)


def test_cka_runs_over_steps_and_resumes_from_the_state_dict():
    whole, fresh = build(cka_window=2), build(cka_window=2)
    whole(*one_level(*related_maps(1)))
    fresh.load_state_dict(whole.state_dict())
    assert "cka.terms" in whole.state_dict()
    for dpk in (whole, fresh):
        dpk(*one_level(*related_maps(2)))
    alone = build(cka_window=2)
    alone(*one_level(*related_maps(2)))
    cka = [m.metrics["dpk/cka_p3"].item() for m in (whole, fresh, alone)]
    assert cka[0] == cka[1] != cka[2]
    ratio = [m.metrics["dpk/ratio_p3"].item() for m in (whole, fresh, alone)]
    assert ratio[0] == ratio[1] != ratio[2]


def test_the_ratio_follows_the_gap_of_the_step_before():
    dpk = build(cka_window=1)
    ckas, ratios = [], []
    for seed in range(4):
        dpk(*one_level(*related_maps(seed)))
        ckas.append(dpk.metrics["dpk/cka_p3"].item())
        ratios.append(dpk.metrics["dpk/ratio_p3"].item())
    # the first has none before it
    assert ratios == pytest.approx([min(1 - cka, 1) for cka in (ckas[0], *ckas[:-1])])
    assert len(set(ckas)) == 4


def test_the_ratio_follows_the_gap_that_was_measured_last():
    dpk = build(cka_window=1, cka_every=3)
    ckas, ratios = [], []
    for seed in range(7):
        dpk(*one_level(*related_maps(seed)))
        ckas.append(dpk.metrics["dpk/cka_p3"].item())
        ratios.append(dpk.metrics["dpk/ratio_p3"].item())
    assert ckas[0] == ckas[1] == ckas[2] != ckas[3] == ckas[4] == ckas[5] != ckas[6]
    assert ratios == pytest.approx([min(1 - cka, 1) for cka in (ckas[0], *ckas[:-1])])


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("value", [0.0, 0.1, 100.1])
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_constant_features_are_finite_and_far_apart(who, value, target):
    student, teacher = maps(2, 14, 10)
    if who != "teacher":
        student = torch.full_like(student, value)
    if who != "student":
        teacher = torch.full_like(teacher, value)
    dpk = build(target=target)
    dpk(*one_level(student, teacher))["loss_dpk"].backward()
    assert dpk.metrics["dpk/loss_p3"].isfinite()
    assert dpk.metrics["dpk/cka_p3"] == 0 and dpk.metrics["dpk/ratio_p3"] == 1
    assert all(p.grad.isfinite().all() for p in dpk.parameters())


def test_one_overflown_step_does_not_spoil_the_running_cka():
    # mixed precision skips such a step and goes on; the average must not be NaN for good
    dpk = build([Level("p3", "q3", STRIDE, CT, CT)])
    _, x = maps(2, 8, 8)
    dpk(*one_level(x.clone(), x))
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.inf
    dpk(*one_level(broken, x))
    dpk(*one_level(x.clone(), x))
    assert dpk.cka.terms.isfinite().all()
    assert dpk.metrics["dpk/cka_p3"].item() == pytest.approx(1, abs=1e-4)


def test_too_few_tokens_for_cka_are_given_the_most_prior():
    dpk = build()
    loss = dpk(*one_level(*maps(1, 2, 4)))["loss_dpk"]  # 2 tokens
    assert loss.isfinite() and dpk.metrics["dpk/ratio_p3"] == 1


@pytest.mark.parametrize("sizes", [None, [(64, 48), (33, 64), (64, 64), (48, 40), (64, 33)]])
def test_cka_of_images_takes_the_tokens_that_all_have_for_one_sample(sizes):
    rows_of_all, cols_of_all = (min(s) / 8 for s in zip(*sizes, strict=True)) if sizes else (8, 8)
    rows_of_all, cols_of_all = math.ceil(rows_of_all), math.ceil(cols_of_all)
    student, teacher = maps(5, 8, 8)
    teacher = teacher + torch.einsum("tc,bchw->bthw", torch.randn(CT, CS), student)
    rows = []
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        h, w = (math.ceil(x / STRIDE) for x in sizes[i]) if sizes else (8, 8)
        row = [[], []]
        for own, x in zip(row, (s, t), strict=True):
            for r in range(0, rows_of_all, 2):
                for c in range(0, cols_of_all, 2):
                    own.append(x[:, r : min(r + 2, h), c : min(c + 2, w)].flatten(1).mean(1))
        rows.append([torch.cat(x) for x in row])
    x, y = (torch.stack(z).double() for z in zip(*rows, strict=True))
    dpk = build(cka_of="images")
    dpk(*one_level(student, teacher, sizes))
    want = linear_cka(x, y).item()
    assert dpk.metrics["dpk/cka_p3"].item() == pytest.approx(want, abs=1e-4)
    assert want > 0.1


def test_images_of_different_size_do_not_make_networks_alike():
    sizes = [(64, 64 - 4 * i) for i in range(8)]
    ckas = []
    for _ in range(20):
        dpk = build(cka_of="images", cka_window=1)
        torch.manual_seed(len(ckas))
        student, teacher = (torch.rand(8, channels, 8, 8) for channels in (CS, CT))
        dpk(*one_level(student, teacher, sizes))
        ckas.append(dpk.metrics["dpk/cka_p3"].item())
    assert abs(np.mean(ckas)) < 0.2


@pytest.mark.parametrize("batch", [1, 3])
def test_cka_of_fewer_than_four_images_is_an_error(batch):
    dpk = build(cka_of="images")
    with pytest.raises(
        UserError,
        match=rf"CKA of images needs 4 images a process but got {batch}: raise "
        r"SOLVER\.IMS_PER_BATCH or choose DISTILL\.DPK\.CKA_OF tokens",
    ):
        dpk(*one_level(*maps(batch, 8, 8)))


def test_a_window_of_one_step_forgets_the_steps_before():
    dpk, alone = build(cka_window=1), build(cka_window=1)
    for seed in (1, 2):
        dpk(*one_level(*maps(2, 8, 8, seed=seed)))
    alone(*one_level(*maps(2, 8, 8, seed=2)))
    assert dpk.metrics["dpk/cka_p3"] == alone.metrics["dpk/cka_p3"]


@pytest.mark.parametrize(
    ("ratio", "half"), [("linear", 0.5), ("cosine", 0.5), ("exponential", math.exp(-2.5))]
)
def test_schedules_follow_progress(ratio, half):
    dpk = build(ratio=ratio)
    seen = watch_mask(dpk.completions["p3"])
    for progress, want in ((0.0, 1.0), (0.5, half), (1.0, 0.0)):
        dpk.progress = progress
        dpk(*one_level(*maps(2, 8, 8)))
        assert dpk.metrics["dpk/ratio_p3"].item() == pytest.approx(want, abs=0.007)
        assert seen[-1][1] == dpk.metrics["dpk/ratio_p3"].item()


def test_the_fixed_ratio_is_the_one_that_is_given():
    dpk = build(ratio="fixed", ratio_fixed=0.3)
    dpk(*one_level(*maps(2, 8, 8)))
    assert dpk.metrics["dpk/ratio_p3"].item() == pytest.approx(0.3)


@pytest.mark.parametrize("mask", ["random", "block", "grid"])
def test_the_layout_is_the_one_that_is_named(mask):
    assert build(mask=mask).completions["p3"].mask is MASKS[mask]


# ------------------------------------------------------------------ several levels


def two_levels(sizes=None):
    levels = [P3, Level("p4", "q4", 16, 4, 2)]
    (s3, t3), (s4, t4) = maps(2, 8, 8), maps(2, 4, 4, 4, 2)
    strides = {"p3": 8, "p4": 16}
    student = Features({"p3": s3, "p4": s4}, strides, sizes)
    return levels, student, Features({"q3": t3, "q4": t4, "unused": t4}, strides, sizes)


def test_loss_is_the_weighted_mean_over_levels():
    levels, student, teacher = two_levels()
    dpk = build(levels, weight=7.0)
    losses = dpk(student, teacher)
    each = [dpk.metrics["dpk/loss_p3"].item(), dpk.metrics["dpk/loss_p4"].item()]
    assert set(losses) == {"loss_dpk"} and each[0] != each[1]
    assert losses["loss_dpk"].item() == pytest.approx(7 * sum(each) / 2, rel=1e-5)


def test_level_weights_are_shares_of_the_loss_finest_level_first():
    levels, student, teacher = two_levels()
    dpk = build(levels, weight=7.0, level_weights=[0.5, 3.0])
    loss = dpk(student, teacher)["loss_dpk"]
    each = [dpk.metrics["dpk/loss_p3"].item(), dpk.metrics["dpk/loss_p4"].item()]
    assert loss.item() == pytest.approx(7 * (0.5 * each[0] + 3 * each[1]) / 2, rel=1e-5)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 0.5]])
def test_level_weights_that_are_not_one_a_level_are_an_error(weights):
    with pytest.raises(
        UserError,
        match=rf"DPK has {len(weights)} level_weights but learns on 2 levels \(p3, p4\): give one",
    ):
        build(two_levels()[0], level_weights=weights)


def test_metrics_are_ratio_cka_and_loss_of_each_level():
    levels, student, teacher = two_levels()
    dpk = build(levels)
    dpk(student, teacher)
    what = ("ratio", "cka", "loss")
    assert set(dpk.metrics) == {f"dpk/{x}_{name}" for x in what for name in ("p3", "p4")}
    assert all(m.shape == () and not m.requires_grad for m in dpk.metrics.values())


def test_each_level_has_its_own_gap():
    levels, student, teacher = two_levels()
    mix = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    teacher.maps["q4"] = torch.einsum("tc,bchw->bthw", mix, student.maps["p4"])
    dpk = build(levels)
    seen = {name: watch_mask(dpk.completions[name]) for name in ("p3", "p4")}
    dpk(student, teacher)
    for name, calls in seen.items():
        assert calls[0][1] == dpk.metrics[f"dpk/ratio_{name}"].item()
    assert seen["p4"][0][1] < seen["p3"][0][1] - 0.2
    tokens = linear_cka(
        *(F.avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(0, 2)
          for x in (student.maps["p3"], teacher.maps["q3"]))
    )  # fmt: skip
    assert dpk.metrics["dpk/cka_p3"].item() == pytest.approx(tokens.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("stride", "token_stride", "patch"), [(8, 32, 4), (32, 32, 1), (64, 32, 1)]
)
def test_a_token_covers_token_stride_pixels(stride, token_stride, patch):
    dpk = build([Level("a", "b", stride, 2, 2)], token_stride=token_stride)
    assert dpk.completions["a"].patch == patch


@pytest.mark.parametrize(("student_size", "teacher_size"), [((8, 8), (9, 10)), ((10, 9), (8, 9))])
@pytest.mark.parametrize("sizes", [None, [(64, 64), (41, 30)]])
def test_maps_that_differ_by_a_cell_or_two_are_cut_to_what_they_share(
    student_size, teacher_size, sizes
):
    student, teacher = maps(2, *student_size)[0], maps(2, *teacher_size)[1]
    student.requires_grad_()
    h, w = (min(a, b) for a, b in zip(student_size, teacher_size, strict=True))
    losses = []
    for s, t in ((student, teacher), (student[..., :h, :w], teacher[..., :h, :w])):
        losses.append(build()(*one_level(s, t, sizes))["loss_dpk"])
    assert torch.equal(*losses)
    (grad,) = torch.autograd.grad(losses[0], student)
    assert grad[..., h:, :].count_nonzero() == grad[..., w:].count_nonzero() == 0


# ------------------------------------------------------------------ precision, seeds, arguments


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("sizes", [None, [(64, 50), (30, 64)]])
def test_autocast_keeps_cka_in_float32_and_losses_finite(sizes, target):
    ckas = []
    for enabled in (False, True):
        dpk = build(target=target)
        student, teacher = maps(2, 8, 8)
        student.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = dpk(*one_level(student, teacher, sizes))["loss_dpk"]
        loss.backward()
        assert loss.isfinite() and loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in dpk.parameters())
        assert dpk.cka.terms.dtype == dpk.metrics["dpk/cka_p3"].dtype == torch.float32
        ckas.append(dpk.cka.terms)
    assert torch.equal(*ckas)


def test_maps_in_bfloat16_are_taken_under_autocast():
    student, teacher = (x.bfloat16() for x in maps(2, 7, 8))
    student.requires_grad_()
    dpk = build(target="standard")
    with torch.autocast("cpu", torch.bfloat16):
        loss = dpk(*one_level(student, teacher, [(56, 60), (30, 20)]))["loss_dpk"]
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32 and student.grad.isfinite().all()


def test_grouped_tokens_take_a_kth_of_the_weights():
    level = [Level("p3", "p3", STRIDE, 8, 8)]
    dense, grouped = (build(level, grouped=x, token_stride=4 * STRIDE) for x in (False, True))
    for name in ("student_embed", "teacher_embed", "expand"):
        conv, other = (getattr(x.completions["p3"], name) for x in (grouped, dense))
        assert conv.groups == 4 and conv.weight.numel() * 4 == other.weight.numel()
    student, teacher = maps(2, 9, 7, 8, 8)
    features = (Features({"p3": x}, {"p3": STRIDE}) for x in (student, teacher))
    grouped(*features)["loss_dpk"].backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in grouped.parameters())


def test_the_same_seed_gives_the_same_loss():
    dpk = build(ratio="fixed")
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(dpk(*one_level(*maps(2, 12, 12)))["loss_dpk"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("depth", [0, 2])
def test_depths_of_the_transformers(depth):
    dpk = build(encoder_depth=depth, decoder_depth=2 - depth)
    completion = dpk.completions["p3"]
    blocks = [completion.student_encoder, completion.teacher_encoder, completion.decoder]
    assert [len(b.blocks) for b in blocks] == [depth, depth, 2 - depth]
    dpk(*one_level(*maps(2, 6, 6)))["loss_dpk"].backward()
    assert all(p.grad is not None for p in dpk.parameters())


@pytest.mark.parametrize("wrong", [{"dim": 16, "heads": 3}, {"dim": 6, "heads": 2}])
def test_a_width_that_heads_cannot_share_is_an_error(wrong):
    with pytest.raises(UserError, match=r"^DPK's dim is .*: choose"):
        build_distiller({"dpk": wrong}, [Level("p3", "p3", 8, 4, 4)])


# ------------------------------------------------------------------ forms


def form_of(**arguments):
    """What a DPK does in the five things that a form chooses."""
    dpk = build_distiller({"dpk": {"dim": 16, "heads": 2, **arguments}}, [P3]).methods["dpk"]
    completion = dpk.completions["p3"]
    target = next(name for name, target in TARGETS.items() if target is dpk.target)
    groups = completion.student_embed.groups > 1 or completion.expand.groups > 1
    depth = len(completion.student_encoder.blocks)
    assert depth == len(completion.teacher_encoder.blocks)
    return completion.shortcut is not None, target, groups, dpk.cka.every, depth


def test_a_form_chooses_five_things_and_each_can_be_chosen_besides():
    shortcut = (True, "standard", False, 4, 0)  # 3 and 5 channels make no groups
    assert form_of() == form_of(form="shortcut") == shortcut
    assert form_of(form="paper") == (False, "raw", False, 1, 1)
    assert form_of(form="paper", shortcut=True, cka_every=2) == (True, "raw", False, 2, 1)
    assert form_of(target="relative", cka_every=1, encoder_depth=2) == (
        True, "relative", False, 1, 2
    )  # fmt: skip
    assert form_of(form="paper", encoder_depth=0)[-1] == 0
    with pytest.raises(UserError, match="no form of DPK named 'papr': did you mean 'paper'"):
        form_of(form="papr")


@pytest.mark.parametrize(("form", "groups"), [("shortcut", 4), ("paper", 1)])
def test_tokens_are_grouped_by_the_form(form, groups):
    level = Level("p3", "q3", STRIDE, 8, 8)
    arguments = {"dim": 16, "heads": 2, "form": form}
    dpk = build_distiller({"dpk": arguments}, [level]).methods["dpk"]
    assert dpk.completions["p3"].student_embed.groups == groups

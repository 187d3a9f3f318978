"""The DPK distiller against a slow reference, one image at a time, and at the edges of shape."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dpk_det.distill import DPK, Features, Level, linear_cka
from dpk_det.distill.dpk import TARGETS
from dpk_det.distill.tokens import sincos_positions
from dpk_det.errors import UserError

CS, CT, STRIDE = 3, 5, 8
P3 = Level("p3", "q3", STRIDE, CS, CT)


def build(levels=(P3,), fresh=False, **kw):
    """A small DPK; unless fresh, with no weight left at 0 or 1, where mistakes would hide."""
    torch.manual_seed(0)
    dpk = DPK(list(levels), **{"dim": 16, "heads": 2, "token_stride": 2 * STRIDE, **kw})
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
    """Let the mask draw as ever, and note what it was given and drew."""
    seen, draw = [], completion.mask

    def mask(valid, ratio):
        seen.append((valid, ratio, draw(valid, ratio)))
        return seen[-1][2]

    completion.mask = mask
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


def slow_complete(completion, student, teacher, takes_prior):
    """Complete one image's maps, cut to what is not padding."""
    k, (height, width) = completion.patch, student.shape[1:]
    w = math.ceil(width / k)
    own = embed(completion.student_embed, student, k)
    prior = embed(completion.teacher_embed, teacher, k)
    own = {at: x for at, x in own.items() if not takes_prior[at]}
    prior = {at: x for at, x in prior.items() if takes_prior[at]}
    hybrid = encode(completion.student_encoder, own) | encode(completion.teacher_encoder, prior)
    codes = sincos_positions(math.ceil(height / k), w, completion.decoder.norm.bias.numel(), "cpu")
    hybrid = {(r, c): x + codes[r * w + c] for (r, c), x in hybrid.items()}
    out = teacher.new_empty(teacher.shape)
    weight, bias = completion.expand.weight, completion.expand.bias
    added = 0
    if isinstance(completion.shortcut, nn.Identity):
        added = student
    elif completion.shortcut is not None:
        added = torch.einsum("ts,shw->thw", completion.shortcut.weight[:, :, 0, 0], student)
        added = added + completion.shortcut.bias[:, None, None]
    for (r, c), token in encode(completion.decoder, hybrid).items():
        for u in range(min(k, height - r * k)):
            for v in range(min(k, width - c * k)):
                out[:, r * k + u, c * k + v] = token @ weight[:, :, u, v] + bias
    return out + added


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
    """Mean squared error over all valid cells of a batch, image by image."""
    (completion,) = dpk.completions.values()
    target, scale = teacher, 1
    if dpk.target is TARGETS["standard"]:
        target = standardise(teacher, extents)
    if dpk.target is TARGETS["relative"]:
        scale = 1 / (channel_moments(teacher, extents)[1].mean() + 1e-6)
    grid = [math.ceil(x / completion.patch) for x in student.shape[2:]]
    total, cells = 0.0, 0
    for s, t, y, (h, w), row in zip(student, teacher, target, extents, drawn, strict=True):
        # a map of one token is completed beside a token of padding
        row = row[:1] if grid == [1, 1] else row
        out = slow_complete(completion, s[:, :h, :w], t[:, :h, :w], row.view(*grid))
        total = total + (out - y[:, :h, :w]).square().mean(0).sum()
        cells += h * w
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
    ("raw", 0.4, False, CS),
    ("raw", 1.0, True, CT),
    ("relative", 0.0, True, CS),
    ("relative", 0.4, True, CT),
    ("standard", 0.4, True, CS),
    ("standard", 1.0, False, CT),
]


@pytest.mark.parametrize(("target", "ratio", "shortcut", "cs"), SETTINGS)
@pytest.mark.parametrize("case", REFERENCES)
def test_loss_and_gradients_equal_the_slow_reference(case, target, ratio, shortcut, cs):
    batch, height, width, sizes, token_stride = REFERENCES[case]
    if target == "relative" and batch * height * width == 1:
        pytest.skip("one cell has no variance to be relative to")
    dpk = build(
        [Level("p3", "q3", STRIDE, cs, CT)],
        **{"ratio": "fixed", "ratio_fixed": ratio, "weight": 2.5, "token_stride": token_stride},
        **{"target": target, "shortcut": shortcut},
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


@pytest.mark.parametrize("sizes", [None, [(5, 4), (2, 6)]])
def test_standard_target_equals_numpy(sizes):
    _, teacher = maps(2, 5, 6)
    teacher = teacher * torch.arange(1, 6).view(5, 1, 1) + 100
    teacher[:, 2] = 7  # a dead channel has no deviation
    cells, extents = None, [(5, 6)] * 2
    if sizes:
        extents = sizes
        cells = torch.zeros(2, 5, 6, dtype=torch.bool)
        for mask, (h, w) in zip(cells, extents, strict=True):
            mask[:h, :w] = True
    got, scale = TARGETS["standard"](teacher, cells)
    want = standardise(teacher, extents)
    assert scale == 1
    where = torch.ones(2, 5, 6, dtype=torch.bool) if cells is None else cells
    for g, w, c in zip(got, want, where, strict=True):
        torch.testing.assert_close(g[:, c], w[:, c], rtol=1e-3, atol=1e-3)
    assert got[:, 2].abs().max() < 1e-3


def test_raw_target_is_the_map_itself():
    _, teacher = maps(2, 5, 6)
    target, scale = TARGETS["raw"](teacher, None)
    assert torch.equal(target, teacher) and scale == 1


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
        args = {"target": target, "shortcut": shortcut, "ratio_max": 0.5}
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

        def fixed(valid, ratio):
            row = torch.zeros(valid.shape, dtype=torch.bool).flatten()
            at = valid.flatten().nonzero()[[0, 3, 4], 0]
            row[at] = True
            row[(~valid).flatten().nonzero()[: round(ratio * row.numel()) - 3, 0]] = True
            return row.view(valid.shape)

        dpk.completions["p3"].mask = fixed
        dpk.schedule = lambda cka, **_: cka.new_full(cka.shape, 0.5)
        losses.append(dpk(*one_level(s, t, sizes))["loss_dpk"])
        ckas.append(dpk.metrics["dpk/cka_p3"])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(ckas[0], ckas[1])


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 2), (3, 4), (7, 5), (16, 16)])
@pytest.mark.parametrize(("batch", "padded"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("shortcut", [False, True])
def test_every_parameter_has_a_gradient_at_every_ratio(shortcut, batch, padded, size, ratio):
    # DistributedDataParallel waits for each
    dpk = build(ratio="fixed", ratio_fixed=ratio, shortcut=shortcut)
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
    assert out[0].shape == teacher.shape
    assert torch.equal(out[0], out[1])


def test_prior_tokens_take_nothing_from_the_student():
    dpk = build(shortcut=False)
    seen = watch_mask(dpk.completions["p3"])
    student, teacher = maps(2, 8, 8)
    student.requires_grad_()
    dpk.completions["p3"](student, teacher, 0.4, None).square().sum().backward()
    drawn = seen[0][2].view(2, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
    used = student.grad.any(1)
    assert torch.equal(used, ~drawn)


@pytest.mark.parametrize("cs", [CS, CT])
def test_shortcut_starts_from_the_students_map(cs):
    dpk = build([Level("p3", "q3", STRIDE, cs, CT)], fresh=True)
    completion = dpk.completions["p3"]
    student, teacher = maps(2, 5, 7, cs)
    out = completion(student, teacher, 0.4, None)
    if cs == CT:
        assert torch.equal(out, student)
        assert dpk(*one_level(student, student))["loss_dpk"] == 0
    else:
        assert torch.equal(out, completion.shortcut(student))
    # the transformer is cut off at first, but not for good
    out.square().mean().backward()
    assert completion.expand.weight.grad.any()


def test_without_shortcut_the_student_comes_in_through_its_tokens_alone():
    completion = build(shortcut=False, fresh=True).completions["p3"]
    assert completion.shortcut is None and completion.expand.weight.any()
    student, teacher = maps(1, 8, 8)
    completion.mask = lambda valid, ratio: torch.arange(16)[None] > 0  # all but one are prior's
    outs = []
    for s in (student, student.clone()):
        s[:, :, 2:] += len(outs)  # outside the one token
        outs.append(completion(s, teacher, 1.0, None))
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


# ------------------------------------------------------------------ the gap


def test_equal_networks_have_cka_one_and_the_lowest_ratio():
    for low in (0.0, 0.15):
        dpk = build([Level("p3", "q3", STRIDE, CT, CT)], ratio_min=low)
        seen = watch_mask(dpk.completions["p3"])
        _, x = maps(2, 8, 8)
        dpk(*one_level(x.clone(), x))
        assert dpk.metrics["dpk/cka_p3"].item() == pytest.approx(1, abs=1e-5)
        assert dpk.metrics["dpk/ratio_p3"].item() == pytest.approx(low, abs=1e-5)
        assert seen[0][1] == pytest.approx(low, abs=1e-5)


def test_unrelated_networks_have_a_ratio_near_one_within_its_bound():
    student, teacher = maps(4, 32, 32)
    for high, low in ((1.0, 0.97), (0.8, 0.8)):
        dpk = build(ratio_max=high)
        dpk(*one_level(student, teacher))
        assert low - 1e-6 <= dpk.metrics["dpk/ratio_p3"].item() <= high + 1e-6
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


def test_cka_runs_over_steps_and_resumes_from_the_state_dict():
    whole, fresh = build(cka_momentum=0.5), build(cka_momentum=0.5)
    whole(*one_level(*maps(2, 8, 8, seed=1)))
    fresh.load_state_dict(whole.state_dict())
    assert "cka.terms" in whole.state_dict()
    for dpk in (whole, fresh):
        dpk(*one_level(*maps(2, 8, 8, seed=2)))
    alone = build(cka_momentum=0.5)
    alone(*one_level(*maps(2, 8, 8, seed=2)))
    cka = [m.metrics["dpk/cka_p3"].item() for m in (whole, fresh, alone)]
    assert cka[0] == cka[1] != cka[2]


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


@pytest.mark.parametrize(("dim", "heads", "message"), [(16, 3, "heads"), (6, 2, "multiple of 4")])
def test_widths_that_do_not_fit_are_refused_when_built(dim, heads, message):
    with pytest.raises(ValueError, match=message):
        build(dim=dim, heads=heads)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio_min": 0.6, "ratio_max": 0.4},
        {"ratio_max": 1.5},
        {"ratio_fixed": 5.0},
        {"token_stride": 0},
        {"heads": 0},
        {"cka_momentum": 1.0},
    ],
)
def test_numbers_that_cannot_be_are_an_error(wrong):
    with pytest.raises(UserError, match=r"^DPK's \w+ is .*: choose"):
        DPK([Level("p3", "p3", 8, 4, 4)], **wrong)

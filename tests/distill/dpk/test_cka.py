"""CKA against the literal n x n formula, its statistics, and its running average."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dpk_det
from dpk_det.distill.dpk.cka import MinibatchCKA, cka_from_terms, hsic_terms, linear_cka


def direct_hsic(x, y):
    """Nguyen, Raghu and Kornblith 2021, equation 3, letter by letter."""
    k, l = ((z.double() @ z.double().T).fill_diagonal_(0) for z in (x, y))  # noqa: E741
    n = len(x)
    one = torch.ones(n, 1, dtype=torch.float64)
    trace = torch.trace(k @ l)
    sums = (one.T @ k @ one) * (one.T @ l @ one) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (one.T @ k @ l @ one)
    return (trace + sums - cross).item() / (n * (n - 3))


def direct_terms(x, y):
    terms = [direct_hsic(x, y), direct_hsic(x, x), direct_hsic(y, y)]
    return torch.tensor(terms, dtype=torch.float64)


def direct_cka(x, y):
    cross, x_self, y_self = direct_terms(x, y)
    return (cross / (x_self * y_self).sqrt()).item()


def related(n, d, e, mean=0.0, seed=0):
    """Two samples that share a part, at a given mean."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    y = x @ torch.randn(d, e, generator=g) / d**0.5 + torch.randn(n, e, generator=g)
    return x + mean, y - 2 * mean


SHAPES = [(4, 1, 1), (4, 3, 5), (5, 40, 2), (17, 8, 8), (60, 3, 33), (200, 16, 24)]


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize(("n", "d", "e"), SHAPES)
def test_hsic_terms_equal_the_literal_formula(n, d, e, mean):
    for seed in range(5):
        x, y = related(n, d, e, mean, seed)
        want = direct_terms(x, y)
        # HSIC of few samples may be near zero by chance: what it is a difference of sets the scale
        a, b = ((z - z.mean(0)).square().sum(1).mean() for z in (x, y))
        scale = torch.stack([a * b, a * a, b * b]).double()
        got = hsic_terms(x, y).double()
        assert ((got - want).abs() <= 1e-4 * want.abs() + 1e-4 * scale).all(), (got, want)


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize(("n", "d", "e"), [(60, 3, 33), (100, 64, 64), (200, 16, 24), (500, 4, 4)])
def test_cka_equals_the_literal_formula(n, d, e, mean):
    x, y = related(n, d, e, mean)
    assert linear_cka(x, y).item() == pytest.approx(direct_cka(x, y), rel=1e-4)


@pytest.mark.parametrize("give_n", [False, True])
def test_rows_that_are_not_valid_do_not_count(give_n):
    for seed in range(5):
        x, y = related(40, 6, 9, 100.0, seed)
        valid = torch.rand(40, generator=torch.Generator().manual_seed(seed)) < 0.6
        want = direct_terms(x[valid], y[valid])
        x[~valid] = torch.nan  # would show in any sum
        y[~valid] = torch.inf
        n = int(valid.sum()) if give_n else None
        got = hsic_terms(x, y, valid, n).double()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_float64_samples_are_computed_in_float64():
    x, y = (z.double() for z in related(30, 5, 7))
    got = hsic_terms(x, y)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, direct_terms(x, y), rtol=1e-10, atol=1e-12)


def test_hsic_of_small_minibatches_is_unbiased():
    # for linear kernels the population's HSIC is |Cov(x, y)|_F^2
    g = torch.Generator().manual_seed(1)
    mix = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 0.3]])
    want = torch.stack(
        [mix.square().sum(), torch.tensor(2.0), (mix.T @ mix + torch.eye(3)).square().sum()]
    )
    draws = []
    for _ in range(4000):
        x = torch.randn(6, 2, generator=g)
        draws.append(hsic_terms(x, x @ mix + torch.randn(6, 3, generator=g)))
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert (error < 0.06 * want).all()  # else the next line would show nothing
    assert ((draws.mean(0) - want).abs() < 3.5 * error).all(), (draws.mean(0), want, error)


def test_hsic_of_unrelated_small_minibatches_averages_to_zero():
    g = torch.Generator().manual_seed(2)
    draws = torch.stack(
        [
            hsic_terms(torch.randn(5, 3, generator=g), torch.randn(5, 4, generator=g))[0]
            for _ in range(2000)
        ]
    )
    assert draws.mean().abs() < 3.5 * draws.std() / len(draws) ** 0.5


def test_unrelated_gaussians_have_cka_zero_within_noise():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(2000, 16, generator=g), torch.randn(2000, 16, generator=g)
    assert abs(linear_cka(x, y).item()) < 0.01


def test_cka_ignores_rotation_shift_and_scale():
    x, y = related(80, 12, 7)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(4)))[0]
    before = linear_cka(x, y).item()
    assert 0.2 < before < 0.95
    for moved in (x @ rotation, x + torch.arange(12.0), 0.01 * x, -300 * x):
        assert linear_cka(moved, y).item() == pytest.approx(before, rel=1e-4)
        assert linear_cka(y, moved).item() == pytest.approx(before, rel=1e-4)
    stretched = x * torch.linspace(0.1, 10, 12)  # no isotropic scaling: this one shows
    assert abs(linear_cka(stretched, y).item() - before) > 0.01


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_equal_features_have_cka_one(mean):
    x, _ = related(50, 20, 1, mean)
    assert linear_cka(x, x).item() == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, 7 * x + 1).item() == pytest.approx(1, abs=1e-4)


def test_cka_never_leaves_its_range():
    terms = torch.tensor([[2.0, 1.0, 1.0], [-2.0, 1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    assert cka_from_terms(terms).tolist() == [1, -1, 0, 0]


# n and values whose mean rounds in float32 are among them
@pytest.mark.parametrize("n", [4, 7, 50, 64, 997])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3.3, 100.1, 12345.678])
def test_constant_features_have_cka_zero(n, value):
    x, _ = related(n, 5, 1)
    constant = torch.full((n, 3), value)
    for a, b in ((x, constant), (constant, x), (constant, constant), (constant, 2.7 * constant)):
        assert linear_cka(a, b).item() == 0


def test_constant_valid_rows_have_cka_zero():
    x, _ = related(50, 5, 1)
    valid = torch.arange(50) % 7 > 0  # the first row does not count
    constant = torch.full((50, 3), 100.1)
    constant[~valid] = 5
    for pair in ((x, constant), (constant, x), (constant, constant)):
        assert cka_from_terms(hsic_terms(*pair, valid)).item() == 0


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_than_four_samples_raise(n):
    x = torch.randn(n, 5)
    with pytest.raises(ValueError, match=f"at least 4 samples but got {n}"):
        linear_cka(x, x)
    rows = torch.randn(10, 5)
    with pytest.raises(ValueError, match="at least 4"):
        hsic_terms(rows, rows, torch.arange(10) < n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_cka_in_float32(dtype):
    x, y = (z.to(dtype) for z in related(60, 16, 8))
    before = linear_cka(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x.T @ y).dtype == torch.bfloat16  # autocast is at work
        inside = linear_cka(x, y)
        running = MinibatchCKA(1, 2).update([(x, y, None, 60)])
    assert before.dtype == inside.dtype == running.dtype == torch.float32
    assert torch.equal(before, inside)
    torch.testing.assert_close(running[0], before)


def steps(num, seed=0):
    """(steps, levels) of samples, of varying n; two levels, the second with a mask."""
    out = []
    for i in range(num):
        x, y = related(8 + i, 4, 6, seed=seed + i)
        u, v = related(12, 3, 3, mean=5.0, seed=seed + 100 + i)
        valid = torch.arange(12) < 5 + i
        out.append([(x, y, None, 8 + i), (u, v, valid, 5 + i)])
    return out


def test_running_cka_is_the_ratio_of_averaged_terms():
    module = MinibatchCKA(2, 10)
    average = [[0.0] * 3, [0.0] * 3]
    for step in steps(6):
        got = module.update(step)
        for level, (x, y, valid, _) in enumerate(step):
            rows = slice(None) if valid is None else valid
            terms = direct_terms(x[rows], y[rows]).tolist()
            for j in range(3):
                average[level][j] = 0.9 * average[level][j] + 0.1 * terms[j]
            cross, x_self, y_self = average[level]
            want = cross / (x_self**0.5 * y_self**0.5)
            assert got[level].item() == pytest.approx(max(-1, min(1, want)), rel=1e-4)
        assert got.shape == (2,) and got.dtype == torch.float32


def test_a_cka_of_every_third_step_looks_back_on_as_many_steps():
    module, sparse = MinibatchCKA(2, 4), MinibatchCKA(2, 12, every=3)
    for i, step in enumerate(steps(8)):
        # what is not measured is not computed either
        got = sparse.update(level if i % 3 == 0 else pytest.fail("read") for level in step)
        if i % 3 == 0:
            want = module.update(step)
        assert torch.equal(got, want)


def test_a_step_that_measures_nothing_is_a_step_after_the_one_that_did():
    module = MinibatchCKA(2, 1, every=2)
    measured = [module.update(step) for step in steps(4)]
    assert torch.equal(module.before(), measured[3])  # of the third step
    module.update(steps(5)[4])
    assert torch.equal(module.before(), measured[3])
    module.update([])
    assert not torch.equal(module.before(), measured[3])


def test_first_step_of_running_cka_is_the_plain_cka():
    x, y = related(30, 5, 5)
    got = MinibatchCKA(1, 50).update([(x, y, None, 30)])
    assert got.item() == pytest.approx(direct_cka(x, y), rel=1e-4)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_running_cka_resumes_from_its_state_dict(every):
    whole, first, second = (MinibatchCKA(2, 4, every=every) for _ in range(3))
    all_steps = steps(6)
    wants = [(whole.update(s), whole.before()) for s in all_steps]
    for s in all_steps[:3]:
        first.update(s)
    state = first.state_dict()
    assert set(state) == {"terms", "step"}
    second.load_state_dict(state)
    for s, (now, before) in zip(all_steps[3:], wants[3:], strict=True):
        assert torch.equal(second.update(s), now)
        assert torch.equal(second.before(), before)


def test_a_first_step_that_was_broken_off_is_taken_anew():
    def fails():
        raise MemoryError
        yield

    module = MinibatchCKA(2, 4, every=4)
    with pytest.raises(MemoryError):
        module.update(fails())
    (step,) = steps(1)
    assert torch.equal(module.update(step), MinibatchCKA(2, 4, every=4).update(step))
    assert torch.equal(module.before(), cka_from_terms(module.terms))


def test_a_state_that_is_loaded_between_steps_is_taken_up():
    states, wants, module = [], [], MinibatchCKA(2, 4, every=2)
    for step in steps(4):
        states.append({name: x.clone() for name, x in module.state_dict().items()})
        wants.append((module.update(step), module.before()))
    for i in (1, 2, 3):  # of step 0 nobody has a state
        module.load_state_dict(states[i])
        got = module.update(steps(4)[i])
        assert torch.equal(got, wants[i][0]) and torch.equal(module.before(), wants[i][1])


def test_running_cka_carries_no_gradient():
    x, y = (z.requires_grad_() for z in related(20, 4, 4))
    module = MinibatchCKA(1, 2)
    assert not module.update([(x, y, None, 20)]).requires_grad
    assert not module.terms.requires_grad
    assert list(module.parameters()) == []


def test_step_with_too_few_samples_keeps_the_average():
    module = MinibatchCKA(2, 2)
    few = (torch.randn(3, 4), torch.randn(3, 4), None, 3)
    enough = (*related(10, 4, 4), None, 10)
    assert module.update([few, few]).tolist() == [0, 0]  # never had any
    first = module.update([enough, enough])
    kept = module.terms[1].clone()
    second = module.update([(*related(10, 4, 4, seed=9), None, 10), few])
    assert torch.equal(module.terms[1], kept)
    assert second[1] == first[1]
    assert second[0] != first[0]


def test_constant_features_leave_running_cka_finite():
    module = MinibatchCKA(1, 2)
    constant = torch.full((10, 4), 3.0)
    assert module.update([(constant, constant, None, 10)]).tolist() == [0]
    x, y = related(10, 4, 4)
    assert module.update([(x, y, None, 10)]).isfinite().all()


# ------------------------------------------------------------------ whole matrices


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("n", "d", "e"), [(12, 12, 40), (20, 33, 20), (8, 200, 9)])
def test_few_samples_of_many_features_give_what_many_samples_would(n, d, e, padded):
    x, y = related(n, d, e, 10.0)
    valid = torch.arange(n) != 2 if padded else None
    few = hsic_terms(x, y, valid)  # by n x n matrices
    # columns of zeros change no inner product, more rows that do not count change no estimate
    rows = torch.nn.functional.pad
    more = max(d, e)
    valid = torch.arange(n + more) < n if valid is None else rows(valid, (0, more))
    many = hsic_terms(rows(x, (0, 0, 0, more)), rows(y, (0, 0, 0, more)), valid)
    torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-4 * many.abs().max().item())


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that are made within."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.seen = getattr(self, "seen", set()) | {tuple(x.shape) for x in made}
        return out


@pytest.mark.parametrize(("n", "d", "e"), [(20, 20, 30), (20, 30, 20), (41, 40, 50), (500, 4, 600)])
def test_whole_matrices_are_made_only_where_samples_are_few(n, d, e):
    with Shapes() as made:
        hsic_terms(*related(n, d, e))
    assert ((n, n) in made.seen) == (n <= min(d, e))


def test_a_window_of_one_step_is_that_step_alone():
    module = MinibatchCKA(1, 1)
    for seed in range(3):
        x, y = related(30, 5, 5, seed=seed)
        got = module.update([(x, y, None, 30)])
        assert torch.equal(got[0], linear_cka(x, y))


RANK = """
import json, sys
sys.modules["detectron2"] = None  # not needed here, and slow to import
import torch
from dpk_det.distill.dpk.cka import MinibatchCKA
torch.set_num_threads(1)
rank, init, data, out = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init, rank=rank, world_size=2)
module = MinibatchCKA(3, 10)
ckas = [module.update(step).tolist() for step in torch.load(data)[rank]]
with open(out, "w") as f:
    json.dump({"ckas": ckas, "terms": module.terms.tolist()}, f)
torch.distributed.destroy_process_group()
"""


def test_two_processes_agree_on_the_mean_of_their_terms(tmp_path):
    few = (torch.randn(2, 4), torch.randn(2, 4), None, 2)
    ranks = []
    for rank in range(2):
        third = [few if rank else (*related(9, 4, 4, seed=i), None, 9) for i in range(3)]
        ranks.append([[*s, t] for s, t in zip(steps(3, 50 * rank), third, strict=True)])
    for s in (ranks[0][1], ranks[1][1]):
        s[2] = few  # nobody sees the third level in the second step
    torch.save(ranks, tmp_path / "data.pt")
    root = str(Path(dpk_det.__file__).parents[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), f"file://{tmp_path / 'init'}"]
            + [str(tmp_path / "data.pt"), str(tmp_path / f"{rank}.json")],
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in running:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    finally:
        for process in running:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second

    average = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        for level in range(3):
            terms = [hsic_terms(*r[i][level]).double() for r in ranks if r[i][level][3] >= 4]
            if terms:
                average[level] = 0.9 * average[level] + 0.1 * torch.stack(terms).mean(0)
        want = cka_from_terms(average)
        torch.testing.assert_close(torch.tensor(first["ckas"][i]).double(), want, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.tensor(first["terms"]).double(), average, rtol=1e-4, atol=0)

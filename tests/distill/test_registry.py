"""Finding methods by name, putting them side by side, and needing torch alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dpk_det
from dpk_det.distill import (
    DISTILLERS,
    DPK,
    Distiller,
    Features,
    Level,
    build_distiller,
    register_distiller,
)
from dpk_det.distill.registry import Combined
from dpk_det.errors import UserError, find

LEVELS = [Level("p4", "q4", 16, 3, 5)]


@pytest.fixture
def constant():
    """A registered method whose loss is its argument; gone again after the test."""
    before = dict(DISTILLERS)

    @register_distiller("constant")
    class Constant(Distiller):
        def __init__(self, levels, *, value=1.0):
            super().__init__(levels)
            self.value = torch.nn.Parameter(torch.tensor(value))

        def forward(self, student, teacher, targets=None):
            self.metrics = {"constant/value": self.value.detach()}
            return {"loss_constant": self.value * (1 if targets is None else targets)}

    yield Constant
    DISTILLERS.clear()
    DISTILLERS.update(before)


def features(channels, name):
    return Features({name: torch.randn(2, channels, 6, 6)}, {name: 16})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"dpkk": {}}, "no distiller named 'dpkk': did you mean 'dpk'"),
        ({"DPK": {}}, "no distiller named 'DPK': did you mean 'dpk'"),
        ({"xyzzy": {}}, "no distiller named 'xyzzy': choose from .*dpk"),
        ({"dpk": {"mask": "randm"}}, "no mask named 'randm': did you mean 'random'"),
        ({"dpk": {"ratio": "gab"}}, "no ratio schedule named 'gab': did you mean 'gap'"),
        ({"dpk": {"ratio": "Fixd"}}, "no ratio schedule named 'Fixd': did you mean 'fixed'"),
        ({"dpk": {"target": "standart"}}, "no target named 'standart': did you mean 'standard'"),
        ({"dpk": {"target": ""}}, "no target named '': choose from raw, relative, standard"),
        ({"dpk": {"positions": "alll"}}, "no choice of positions named 'alll': .*'all'"),
        ({"dpk": {"cka_of": "token"}}, "no sample of CKA named 'token': did you mean 'tokens'"),
        ({"dpk": {"mask": "blok"}}, "no mask named 'blok': did you mean 'block'"),
        ({"dpk": {"ratio": "cosin"}}, "no ratio schedule named 'cosin': did you mean 'cosine'"),
        ({"fitnets": {"target": "rew"}}, "no target named 'rew': did you mean 'raw'"),
        ({"fitnet": {}}, "no distiller named 'fitnet': did you mean 'fitnets'"),
        ({}, "No method is named: choose from .*cwd.*dpk"),
    ],
)
def test_unknown_names_are_user_errors_that_name_the_nearest(methods, message):
    with pytest.raises(UserError, match=message):
        build_distiller(methods, LEVELS)


def test_find_returns_what_the_table_holds():
    table = {"one": object(), "two": object()}
    assert find(table, "two", "thing") is table["two"]


def test_build_distiller_passes_levels_and_arguments():
    args = {"dim": 8, "heads": 2, "token_stride": 64, "weight": 3.0, "encoder_depth": 2}
    combined = build_distiller({"dpk": args}, LEVELS)
    dpk = combined.methods["dpk"]
    assert isinstance(dpk, DPK) and dpk.levels == LEVELS and dpk.weight == 3
    completion = dpk.completions["p4"]
    assert completion.patch == 4 and len(completion.student_encoder.blocks) == 2
    assert completion.student_embed.weight.shape == (8, 3, 4, 4)
    assert completion.expand.weight.shape == (8, 5, 4, 4)


def test_registered_methods_are_found_and_built(constant):
    combined = build_distiller({"constant": {"value": 4.0}}, LEVELS)
    assert DISTILLERS["constant"] is constant
    assert isinstance(combined.methods["constant"], constant)
    assert combined.methods["constant"].levels == LEVELS
    assert combined(features(3, "p4"), features(5, "q4"))["loss_constant"] == 4


def test_combined_merges_losses_metrics_and_parameters(constant):
    combined = build_distiller({"dpk": {"dim": 8, "heads": 2}, "constant": {"value": 2.0}}, LEVELS)
    assert isinstance(combined, Combined)
    student, teacher = features(3, "p4"), features(5, "q4")
    losses = combined(student, teacher, targets=3)  # targets reach each method
    assert set(losses) == {"loss_dpk", "loss_constant"} and losses["loss_constant"] == 6
    assert {"constant/value", "dpk/cka_p4", "dpk/ratio_p4", "dpk/loss_p4"} == set(combined.metrics)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in combined.parameters())
    assert {k.split(".")[1] for k in combined.state_dict()} == {"dpk", "constant"}


def test_progress_reaches_every_method_before_it_is_asked(constant):
    combined = build_distiller(
        {"dpk": {"dim": 8, "heads": 2, "ratio": "linear"}, "constant": {}}, LEVELS
    )
    assert combined.progress == combined.methods["dpk"].progress == 0
    for progress in (0.25, 1.0):
        combined.progress = progress
        combined(features(3, "p4"), features(5, "q4"))
        assert combined.methods["constant"].progress == progress
        assert combined.metrics["dpk/ratio_p4"] == 1 - progress


@pytest.mark.parametrize(
    ("names", "want"),
    [(["dpk"], set()), (["fgd", "cwd"], set()), (["dpk", "kd"], {"roi", "dense", "image"})],
)
def test_logits_are_asked_for_when_any_method_uses_them(names, want):
    assert build_distiller({name: {} for name in names}, LEVELS).heads == want


def test_methods_side_by_side_give_what_each_gives_alone():
    methods = {"dpk": {"dim": 8, "heads": 2}, "cwd": {}, "fitnets": {"weight": 2.0}}
    student, teacher = features(5, "p4"), features(5, "q4")
    levels = [Level("p4", "q4", 16, 5, 5)]
    torch.manual_seed(0)
    combined = build_distiller(methods, levels)
    torch.manual_seed(1)
    together = combined(student, teacher)
    assert list(together) == ["loss_dpk", "loss_cwd", "loss_fitnets"]
    fresh = combined.methods["dpk"].cka.terms.zero_()
    assert not fresh.any()
    torch.manual_seed(1)
    for name, method in combined.methods.items():
        (loss,) = method(student, teacher).values()
        assert torch.equal(loss, together[f"loss_{name}"])


def test_the_known_methods():
    rivals = {"fitnets", "cwd", "pkd", "mgd", "fgd", "reviewkd", "kd", "dkd"}
    assert set(DISTILLERS) == {"dpk"} | rivals


def test_base_distiller_says_that_it_has_no_loss():
    with pytest.raises(NotImplementedError, match="Distiller"):
        Distiller(LEVELS)(features(3, "p4"), features(5, "q4"))


def test_pairs_detach_the_teacher_and_cut_both_maps_to_what_they_share():
    student = Features({"p4": torch.randn(2, 3, 6, 9)}, {"p4": 16}, [(96, 144), (50, 200)])
    teacher = Features({"q4": torch.randn(2, 5, 7, 8, requires_grad=True)}, {"q4": 16})
    (pair,) = Distiller(LEVELS).pairs(student, teacher)
    assert pair.level is LEVELS[0] and not pair.teacher.requires_grad
    cut = student.maps["p4"][..., :8], teacher.maps["q4"][..., :6, :]
    assert pair.extents == [(6, 8), (4, 8)]
    for got, want in zip((pair.student, pair.teacher), cut, strict=True):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1, :, :4], want[1, :, :4])
        assert not got[1, :, 4:].any()  # padding is cleared
    assert pair.cells.shape == (2, 6, 8) and pair.cells[0].all()
    assert pair.cells[1, :4].all() and not pair.cells[1, 4:].any()


def test_clearing_the_padding_leaves_the_networks_own_maps_alone():
    maps = [torch.randn(1, c, 6, 6) for c in (3, 5)]
    before = [x.clone() for x in maps]
    student, teacher = (
        Features({name: x}, {name: 16}, [(30, 96)])
        for name, x in zip(("p4", "q4"), maps, strict=True)
    )
    (pair,) = Distiller(LEVELS).pairs(student, teacher)
    assert not pair.student[:, :, 2:].any()
    assert all(torch.equal(x, y) for x, y in zip(maps, before, strict=True))


@pytest.mark.parametrize("sizes", [None, [(96, 96)] * 2, [(81, 200), (96, 96)]])
def test_maps_without_padding_have_no_mask_of_cells(sizes):
    student, teacher = features(3, "p4"), features(5, "q4")
    student.image_sizes = sizes
    (pair,) = Distiller(LEVELS).pairs(student, teacher)
    assert pair.cells is None and pair.extents == [(6, 6)] * 2
    assert torch.equal(pair.student, student.maps["p4"])


WITHOUT_DETECTRON2 = """
import importlib.util, sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in {"detectron2", "fvcore"}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(f) for f in sys.meta_path]
assert importlib.util.find_spec("detectron2") is importlib.util.find_spec("fvcore") is None

import torch
from dpk_det.distill import Features, Level, build_distiller

torch.set_num_threads(1)
distiller = build_distiller({"dpk": {"dim": 8, "heads": 2}}, [Level("s", "t", 8, 3, 4)])
student = Features({"s": torch.randn(2, 3, 8, 8, requires_grad=True)}, {"s": 8})
losses = distiller(student, Features({"t": torch.randn(2, 4, 8, 8)}, {"t": 8}))
losses["loss_dpk"].backward()
assert student.maps["s"].grad.any()
others = {"dpk_det.modeling", "dpk_det.data", "dpk_det.engine", "dpk_det.pairing.attach"}
assert not others & set(sys.modules), others & set(sys.modules)
print("distilled")
"""


def test_distillation_needs_no_detectron2():
    root = str(Path(dpk_det.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DETECTRON2],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stdout == "distilled\n", done.stderr


def test_methods_do_not_lose_losses_to_one_another():
    class Same(Distiller):
        def forward(self, student, teacher, targets=None):
            return {"loss_same": torch.zeros(())}

    both = Combined({"one": Same([]), "other": Same([])})
    with pytest.raises(UserError, match="Two losses are named 'loss_same'.*rename one"):
        both(Features({}, {}), Features({}, {}))


def test_a_method_may_learn_from_levels_of_its_own():
    methods = {"pkd": {"levels": ["p4"]}, "cwd": {}, "fitnets": {"levels": []}}
    levels = [Level("p3", "q3", 8, 3, 5), *LEVELS]
    built = build_distiller(methods, levels).methods
    found = {name: [level.student for level in method.levels] for name, method in built.items()}
    assert found == {"pkd": ["p4"], "cwd": ["p3", "p4"], "fitnets": ["p3", "p4"]}
    assert list(built["pkd"].adapters) == ["p4"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"pkd": {"levels": ["p44"]}}, r"no level \(DISTILL.PKD.LEVELS\) named 'p44': did you.*p4"),
        ({"pkd": {"levels": "p4"}}, "DISTILL.PKD.LEVELS is 'p4': write a list of names"),
        ({"pkd": {"levels": ["p4", "p4"]}}, "DISTILL.PKD.LEVELS names p4 twice"),
        ({"kd": {"levels": ["p4"]}}, "no argument of the method kd named 'levels'"),
    ],
)
def test_levels_that_a_method_cannot_have_are_refused(methods, message):
    with pytest.raises(UserError, match=message):
        build_distiller(methods, LEVELS)

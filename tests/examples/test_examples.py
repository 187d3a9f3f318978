"""The example projects: a few steps each on a few images, plain and distilled."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.config.loading import load_config
from dpk_det.data import shapes
from dpk_det.data.root import datasets_root
from dpk_det.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = ("default_trainer", "plain_loop", "lazyconfig")
LOSSES = {
    "default_trainer": {"loss_dpk", "loss_dkd_roi"},
    "plain_loop": {"loss_dpk"},
    "lazyconfig": {"loss_dpk"},
}


def detector(name, seed=3):
    cfg = load_config(str(ROOT / f"configs/shapes/{name}.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(seed)
    return build_model(cfg)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A teacher's weights."""
    path = tmp_path_factory.mktemp("weights") / "teacher.pth"
    torch.save({"model": detector("teacher").state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """The shapes are few, so that they are soon drawn and evaluated."""
    folder = tmp_path_factory.mktemp("shapes")
    names = ("shapes_train", "shapes_val")
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in names:
            catalog.pop(name, None)
    for seed, name in enumerate(names):
        shapes.register(name, str(folder / name), 6, seed)
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in names:
            catalog.pop(name)
    shapes.register_all(datasets_root())


@pytest.fixture
def run(few_images, weights, tmp_path, command, monkeypatch):
    """``run(example, plain=, steps=, ...)`` as on the command line; returns its output folder.

    With a rate next to nothing weights stay where they start.
    """
    monkeypatch.chdir(ROOT)

    def run(example, plain=False, steps=2, teacher=weights, resume=False):
        folder = tmp_path / example / ("plain" if plain else "distilled")
        script = {"default_trainer": "train_net.py"}.get(example, "train.py")
        argv = ["--resume"] if resume else []
        if example == "lazyconfig":
            argv += ["--config-file", "examples/lazyconfig/student.py"] if plain else []
            argv += [] if plain else [f"model.teacher.weights={teacher}"]
            argv += [f"train.max_iter={steps}", f"train.output_dir={folder}", "optimizer.lr=1e-30"]
            argv += ["dataloader.train.total_batch_size=2", "train.device=cpu"]
        else:
            argv += ["--plain"] if plain else []
            argv += ["--teacher-weights", teacher] if example == "plain_loop" else []
            argv += [] if example == "plain_loop" else ["DISTILL.TEACHER.WEIGHTS", teacher]
            argv += ["SOLVER.MAX_ITER", steps, "OUTPUT_DIR", folder, "SOLVER.BASE_LR", "1e-30"]
            argv += ["SOLVER.IMS_PER_BATCH", 2, "SEED", 1, "SOLVER.WARMUP_ITERS", 0]
        path = f"examples/{example}/{script}"
        monkeypatch.setattr(sys, "argv", [path, *map(str, argv)])
        runpy.run_path(path, run_name="__main__")
        return folder

    return run


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def same(one, other):
    """Whether weights stayed, but for what the rate does to zeros."""
    return all(torch.allclose(x, other[name], rtol=0, atol=1e-9) for name, x in one.items())


@pytest.mark.parametrize("example", EXAMPLES)
def test_plain_twin_and_distilled_student_differ_by_distillation_alone(run, example):
    plain, distilled = run(example, plain=True), run(example)
    one, other = (set().union(*logged(folder)) for folder in (plain, distilled))
    assert {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "lr"} <= one & other
    assert LOSSES[example] | {"dpk/ratio_p2"} <= other - one
    assert all(name.startswith(("dpk/", "dkd/", "loss_d")) for name in other - one)
    # what is left: a plain detector's weights, after the same start the same
    one, other = (
        torch.load(folder / "model_final.pth", weights_only=False)["model"]
        for folder in (plain, distilled)
    )
    assert {x.split(".")[0] for x in other.keys() - one.keys()} == {"distiller"}
    assert same(one, other)
    model = detector("plain", seed=4)
    load_weights_strictly(model, str(distilled / "model_final.pth"), "WEIGHTS")
    assert same(model.state_dict(), one)
    # and both were evaluated
    assert all((folder / "coco_instances_results.json").is_file() for folder in (plain, distilled))


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_distilled_training_resumes(run, example):
    folder = run(example, steps=1)
    before = torch.load(folder / "model_final.pth", weights_only=False)["model"]
    run(example, steps=3, resume=True)
    assert [x["iteration"] for x in logged(folder) if "loss_dpk" in x] == [0, 2]
    after = torch.load(folder / "model_final.pth", weights_only=False)["model"]
    assert same({name: x for name, x in after.items() if "cka" not in name}, before)


def test_the_plain_loop_leaves_a_student_without_distiller(run):
    state = torch.load(run("plain_loop") / "student.pth")["model"]
    detector("plain").load_state_dict(state, strict=True)
    # the teacher's heads, as its twin has them
    assert torch.equal(
        state["roi_heads.box_head.fc1.weight"],
        detector("teacher").state_dict()["roi_heads.box_head.fc1.weight"],
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_without_the_teachers_weights_it_says_so(run, example, tmp_path):
    with pytest.raises(UserError, match=f"There are no weights at {tmp_path / 'none.pth'}"):
        run(example, teacher=tmp_path / "none.pth")


def test_the_lazy_student_is_that_of_the_configs(few_images):
    cfg = LazyConfig.load(str(ROOT / "examples/lazyconfig/student.py"))
    lazy, expected = instantiate(cfg.model), detector("plain")
    lazy.load_state_dict(expected.state_dict(), strict=True)
    batch = [instantiate(cfg.dataloader.train.mapper)(x) for x in _records()]
    losses = []
    for model in (lazy, expected):
        torch.manual_seed(0)
        with EventStorage():
            losses.append(model.train()(batch))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(x, losses[1][name]) for name, x in losses[0].items())
    with torch.no_grad():
        one, other = (model.eval()(batch) for model in (lazy, expected))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_a_backbone_is_cut_out_of_a_detector(tmp_path, monkeypatch):
    start = detector("plain", seed=8)
    torch.save({"model": start.state_dict(), "iteration": 5}, tmp_path / "detector.pth")
    paths = [str(tmp_path / name) for name in ("detector.pth", "new/backbone.pth")]
    monkeypatch.setattr(sys, "argv", ["backbone.py", *paths])
    runpy.run_path(str(ROOT / "examples/backbone.py"), run_name="__main__")
    backbone = torch.load(paths[1])["model"]
    bottom_up = start.backbone.bottom_up.state_dict()
    assert {f"backbone.bottom_up.{name}" for name in bottom_up} == backbone.keys()
    assert same(backbone, start.state_dict())


def _records():
    return get_detection_dataset_dicts("shapes_train")[:2]

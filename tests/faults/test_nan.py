"""Losses and weights that are no numbers: one sentence, and no model that holds them."""

import pytest
import torch
from harness import MAX_ITER, Fault, check_equal, load

whole = pytest.mark.whole
# overrides -> words that the sentence has
WAYS = {
    "a rate that is far too high": (
        ("SOLVER.BASE_LR", 1e9),
        ("loss|gradient", r"step [12]\b"),
    ),
    "a rate that is too high": (("SOLVER.BASE_LR", 1e4), ("loss|gradient", r"step [2-6]\b")),
    "a weight of the loss": (
        ("DISTILL.DPK.WEIGHT", 1e6),
        ("loss|gradient", r"step [2-6]\b"),
    ),
    "pixels of the student": (("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"), ("loss|PIXEL_STD",)),
}


def has_nan(path):
    """Whether a checkpoint's model holds a number that is none."""
    return any(
        x.is_floating_point() and not x.isfinite().all() for x in load(path)["model"].values()
    )


def check_models(folder):
    """No checkpoint may hold such numbers."""
    for path in folder.glob("*.pth"):
        if has_nan(path):
            raise Fault(f"NaN saved: {path.name}")


@pytest.mark.parametrize(
    "way",
    [pytest.param(x, marks=[] if x == "a rate that is far too high" else whole) for x in WAYS],
)
def test_a_loss_that_is_no_number(experiment, tmp_path, way):
    one = experiment("dpk")
    opts, words = WAYS[way]
    folder = tmp_path / "run"
    command = one.train(folder, *opts)
    command.refuse(*words)
    check_models(folder)
    assert not (folder / "results.json").exists()


@whole
@pytest.mark.parametrize("name", ["plain", "images", "dpk-workers"])
@pytest.mark.parametrize("step", [1, 4, MAX_ITER])
def test_a_step_that_spoils_the_weights(experiment, tmp_path, name, step):
    one = experiment(name)
    folder = tmp_path / "run"
    fault = {"at": "step", "n": step, "do": "spoil"}
    command = one.train(folder, faults=[fault])
    command.refuse(rf"step ({step}|{step + 1})\b")
    check_models(folder)
    assert not (folder / "results.json").exists()
    # the fault is gone, and so is all that it did
    second = one.resume(folder).succeed()
    check_equal(folder, one.reference, [second])


@whole
def test_the_last_good_checkpoint_is_kept(experiment, tmp_path):
    one = experiment("plain")
    folder = tmp_path / "run"
    # the rate grows by its warm-up, so that the first steps are sound
    opts = ("SOLVER.WARMUP_ITERS", 5, "SOLVER.WARMUP_FACTOR", 1e-11, "SOLVER.BASE_LR", 1e9)
    opts += ("SOLVER.CHECKPOINT_PERIOD", 1)
    one.train(folder, *opts).refuse()
    kept = sorted(path.name for path in folder.glob("model_*.pth"))
    assert kept and "model_final.pth" not in kept, kept
    check_models(folder)


@whole
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "key", ["MODEL.WEIGHTS", "MODEL.BACKBONE_WEIGHTS", "DISTILL.TEACHER.WEIGHTS"]
)
def test_given_weights_that_are_no_numbers(experiment, tiny, tmp_path, key, value):
    one = experiment("dpk")
    path = tmp_path / "spoilt.pth"
    source = tiny.weights if "TEACHER" in key else one.reference / "model_final.pth"
    model = load(source)["model"]
    weight = next(k for k in model if k.startswith("backbone") and k.endswith("weight"))
    model[weight].view(-1)[0] = value
    torch.save({"model": model}, path)
    command = one.train(tmp_path / "run", key, path)
    command.refuse("spoilt.pth")
    assert not command.steps

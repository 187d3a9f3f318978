"""The exponential moving average of the weights."""

import json

import pytest
import torch

from dpk_det.checkpoint.loading import load_weights_strictly
from dpk_det.deploy.export import export_student
from dpk_det.engine.trainer import DistillTrainer

STEPS = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 1]
DECAY = 0.75


def load(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]


def plain(state):
    return {k: v for k, v in state.items() if not k.startswith("distiller.")}


@pytest.fixture
def evaluated(monkeypatch):
    """The weights that were evaluated."""
    seen = []

    def test(cls, cfg, model, evaluators=None):
        seen.append(({k: v.clone() for k, v in model.state_dict().items()}, model.training))
        return {"bbox": {"AP": 1.0}}

    monkeypatch.setattr(DistillTrainer, "test", classmethod(test))
    return seen


@pytest.mark.parametrize("name", ["plain", "dpk"])
def test_it_is_the_average_that_one_computes_by_hand(tiny, tmp_path, command, evaluated, name):
    start = plain(tiny.build(name, seed=0).state_dict())
    torch.save({"model": start}, tmp_path / "start.pth")
    opts = [*STEPS, "SOLVER.EMA_DECAY", DECAY, "MODEL.WEIGHTS", tmp_path / "start.pth"]
    argv = ["--config-file", getattr(tiny, name), "OUTPUT_DIR", tmp_path / "a", *opts]
    command(*argv)
    want = {k: v.double() for k, v in start.items()}
    for step in range(4):
        weights = plain(load(tmp_path / "a", f"model_{step:07d}"))
        want = {k: DECAY * want[k] + (1 - DECAY) * weights[k].double() for k in want}
    average = load(tmp_path / "a", "model_ema")
    assert average.keys() == want.keys()
    for key, value in average.items():
        torch.testing.assert_close(value.double(), want[key], rtol=1e-5, atol=1e-6)
    ((seen, training),) = evaluated
    assert not training and all(torch.equal(seen[k], average[k]) for k in average)
    # and training goes as without
    command(*argv[:2], "OUTPUT_DIR", tmp_path / "b", *STEPS, *opts[-2:])
    one, other = (load(tmp_path / x, "model_final") for x in "ab")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_it_is_gone_on_with_exactly(tiny, tmp_path, command, evaluated):
    argv = ["--config-file", tiny.dpk, *STEPS, "SOLVER.EMA_DECAY", DECAY, "OUTPUT_DIR", tmp_path]
    command(*argv)
    whole = load(tmp_path, "model_ema")
    for name in ("model_final.pth", "model_0000003.pth", "model_0000002.pth", "results.json"):
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    command("--resume", *argv)
    assert json.loads((tmp_path / "results.json").read_text())["resumed"][0]["exact"]
    again = load(tmp_path, "model_ema")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_counters_are_the_last_steps(tiny, tmp_path, command, evaluated):
    norm = ["MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"]
    opts = [*STEPS, "SOLVER.EMA_DECAY", DECAY, "OUTPUT_DIR", tmp_path, *norm]
    command("--config-file", tiny.plain, *opts)
    average, last = load(tmp_path, "model_ema"), load(tmp_path, "model_final")
    counters = [k for k in last if k.endswith("num_batches_tracked")]
    assert counters and all(average[k] == last[k] == 4 for k in counters)
    statistics = [k for k in last if k.endswith("running_mean")]
    assert not all(torch.equal(average[k], last[k]) for k in statistics)


def test_evaluating_a_training_again_evaluates_its_average(tiny, tmp_path, command, evaluated):
    argv = ["--config-file", tiny.dpk, *STEPS, "SOLVER.EMA_DECAY", DECAY, "OUTPUT_DIR", tmp_path]
    command(*argv)
    command("--eval-only", "--resume", *argv)
    (first, _), (again, _) = evaluated
    assert all(torch.equal(first[k], again[k]) for k in again)


def test_the_average_is_a_checkpoint_like_others(tiny, tmp_path, command, evaluated):
    opts = [*STEPS, "SOLVER.EMA_DECAY", DECAY, "OUTPUT_DIR", tmp_path]
    command("--config-file", tiny.dpk, *opts)
    load_weights_strictly(tiny.build("plain"), str(tmp_path / "model_ema.pth"), "MODEL.WEIGHTS")
    export_student(str(tiny.dpk), str(tmp_path / "model_ema.pth"), str(tmp_path / "out.pth"))
    exported, average = load(tmp_path, "out"), load(tmp_path, "model_ema")
    assert all(torch.equal(exported[k], average[k]) for k in average)


def test_with_the_best_checkpoint_it_is_the_average_that_is_kept(
    tiny, tmp_path, command, evaluated
):
    best = ["TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "bbox/AP"]
    opts = [*STEPS, "SOLVER.EMA_DECAY", DECAY, "OUTPUT_DIR", tmp_path, *best]
    command("--config-file", tiny.dpk, *opts)
    kept, (first, _) = load(tmp_path, "model_best"), evaluated[0]
    assert kept.keys() == first.keys() and all(torch.equal(kept[k], first[k]) for k in kept)

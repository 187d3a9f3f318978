"""The best checkpoint, and the end of a training that no longer improves."""

import json

import pytest
import torch

from dpk_det.engine.best import NoMoreGain
from dpk_det.engine.trainer import DistillTrainer
from dpk_det.errors import UserError

EVERY = ["TEST.EVAL_PERIOD", 1, "TEST.BEST_METRIC", "bbox/AP", "SOLVER.MAX_ITER", 7]


@pytest.fixture
def aps(monkeypatch):
    """Evaluations give these figures, one after another; and the weights that were evaluated."""

    class Aps(list):
        seen = []

    figures = Aps()

    def test(cls, cfg, model, evaluators=None):
        figures.seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"bbox": {"AP": figures[len(figures.seen) - 1]}}

    figures.seen = []
    monkeypatch.setattr(DistillTrainer, "test", classmethod(test))
    return figures


def saved(folder, name="model_best"):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", ["plain", "dpk"])
def test_the_weights_of_the_best_evaluation_are_kept(tiny, tmp_path, command, aps, name):
    aps += [1.0, 5.0, float("nan"), 3.0, 5.0, 4.0, 2.0]
    command("--config-file", getattr(tiny, name), "OUTPUT_DIR", tmp_path, *EVERY)
    assert same(saved(tmp_path), aps.seen[1])
    found = results(tmp_path)
    assert found["best"] == {"metric": "bbox/AP", "value": 5.0, "step": 2}
    assert found["iterations"] == 7 and found["ended_early"] is False
    assert found["results"]["bbox"]["AP"] == 2.0
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_the_last_evaluation_may_be_the_best(tiny, tmp_path, command, aps):
    aps += [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path, *EVERY)
    assert same(saved(tmp_path), saved(tmp_path, "model_final"))
    assert results(tmp_path)["best"]["step"] == 7


def test_it_ends_after_evaluations_without_gain(tiny, tmp_path, command, aps, capsys):
    aps += [1.0, 5.0, 4.0, 5.0, 9.0, 9.0, 9.0]
    argv = ["--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path, *EVERY, "TEST.PATIENCE", 2]
    command(*argv)
    assert len(aps.seen) == 4
    found = results(tmp_path)
    assert found["iterations"] == 4 and found["ended_early"] is True
    assert found["best"]["step"] == 2 and found["results"]["bbox"]["AP"] == 5.0
    final = {k: v for k, v in saved(tmp_path, "model_final").items() if "distiller" not in k}
    assert same(final, {k: v for k, v in aps.seen[3].items() if "distiller" not in k})
    capsys.readouterr()
    command("--resume", *argv)  # it is finished
    assert len(aps.seen) == 4 and results(tmp_path) == found


NO_GAIN = [5.0, 4.0, 4.0, 6.0, 3.0, 3.0, 3.0]


def end_early(tiny, folder, command, aps):
    """A training that ends after three of seven steps, and how to go on with it."""
    aps += NO_GAIN
    argv = ["--config-file", tiny.plain, "OUTPUT_DIR", folder, *EVERY]
    command(*argv, "TEST.PATIENCE", 2)
    assert results(folder)["iterations"] == 3
    del aps.seen[2:]  # the evaluation after the third step is repeated
    return lambda *opts: command("--resume", *argv, *opts)


@pytest.mark.parametrize("opts", [["TEST.PATIENCE", 2], ["TEST.PATIENCE", 1]])
def test_what_ended_early_is_finished_and_told_what_to_change(
    tiny, tmp_path, command, aps, capsys, opts
):
    resume, found = end_early(tiny, tmp_path, command, aps), results(tmp_path)
    capsys.readouterr()
    for more in ([], ["SOLVER.MAX_ITER", 9]):
        resume(*opts, *more)
        line = f"{tmp_path} is trained to its end, 3 steps: raise TEST.PATIENCE, or set it to 0, to"
        assert line in capsys.readouterr().out
    assert len(aps.seen) == 2 and results(tmp_path) == found


@pytest.mark.parametrize(
    ("patience", "steps"),
    [(0, 7), (3, 7)],  # one more evaluation without a gain, and the fourth has one
)
def test_with_more_patience_it_goes_on_as_if_it_had_had_it(
    tiny, tmp_path, command, aps, patience, steps
):
    end_early(tiny, tmp_path / "a", command, aps)("TEST.PATIENCE", patience)
    again = results(tmp_path / "a")
    assert again["iterations"] == steps and again["best"]["step"] == 4
    assert again["resumed"] == [{"step": 3, "exact": True}]
    aps.seen.clear()
    whole = tmp_path / "b"
    command(*("--config-file", tiny.plain, "OUTPUT_DIR", whole, *EVERY), "TEST.PATIENCE", patience)
    assert same(saved(tmp_path / "a", "model_final"), saved(whole, "model_final"))
    for key in ("iterations", "ended_early", "best"):
        assert again[key] == results(whole)[key], key


def test_an_evaluation_is_not_waited_for_twice(tiny, tmp_path, command, aps):
    aps[:] = [5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    argv = ["--config-file", tiny.plain, "OUTPUT_DIR", tmp_path, *EVERY, "TEST.PATIENCE"]
    command(*argv, 2)
    del aps.seen[2:]
    command("--resume", *argv, 4)
    assert results(tmp_path)["iterations"] == 5  # four evaluations after the best


def test_without_a_best_metric_it_goes_on_to_the_last_step(tiny, tmp_path, command, aps):
    resume = end_early(tiny, tmp_path, command, aps)
    resume("TEST.BEST_METRIC", "", "TEST.EVAL_PERIOD", 0)
    assert results(tmp_path)["iterations"] == 7


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_training_remembers_what_was_best(tiny, tmp_path, command, aps, stop):
    aps += [3.0, 2.0, 1.0, 3.0, 3.0, 3.0, 3.0]
    more = ["SOLVER.CHECKPOINT_PERIOD", 1, "TEST.PATIENCE", 3]
    argv = ["--config-file", tiny.plain, "OUTPUT_DIR", tmp_path, *EVERY, *more]
    command(*argv)
    whole, best = results(tmp_path), saved(tmp_path)
    assert whole["iterations"] == 4 and len(aps.seen) == 4
    # as if it had been killed after the checkpoint of that step, before the evaluation
    for path in [
        *tmp_path.glob("model_0*"),
        tmp_path / "model_final.pth",
        tmp_path / "results.json",
    ]:
        if path.suffix == ".json" or path.stem not in {f"model_{i:07d}" for i in range(stop)}:
            path.unlink()
    (tmp_path / "last_checkpoint").write_text(f"model_{stop - 1:07d}.pth")
    del aps.seen[stop - 1 :]
    command("--resume", *argv)
    again = results(tmp_path)
    assert again["resumed"] == [{"step": stop, "exact": True}]
    for key in ("iterations", "ended_early", "best", "results"):
        assert again[key] == whole[key], key
    assert same(saved(tmp_path), best)


def test_without_the_key_nothing_is_kept(trained):
    assert not (trained / "model_best.pth").exists()
    assert "best" not in results(trained) and results(trained)["ended_early"] is False


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TEST.PATIENCE", 2], "TEST.PATIENCE is 2, but nothing says what is to improve"),
        (["TEST.BEST_METRIC", "bbox/AP"], "and TEST.EVAL_PERIOD is 0"),
        ([*EVERY[:2], "TEST.BEST_METRIC", "bbox/APP"], "bbox/AP"),
    ],
)
def test_what_cannot_be_waited_for_is_told_before_training(tiny, tmp_path, command, opts, message):
    with pytest.raises(SystemExit):
        command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path, *opts)
    assert not (tmp_path / "model_final.pth").exists()


def test_its_end_is_no_failure():
    assert not issubclass(NoMoreGain, Exception) and not issubclass(NoMoreGain, UserError)

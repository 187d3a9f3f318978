"""The trainer: what it optimises, writes, resumes and starts from."""

import json
import logging
import re

import pytest
import torch
from detectron2.utils.events import EventStorage

from dpk_det.distill import DPK
from dpk_det.engine import DistillTrainer
from dpk_det.errors import UserError
from dpk_det.pairing.teacher import Teacher

LEVELS = ("p2", "p3", "p4")
TERMS = "distiller.methods.dpk.cka.terms"


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def with_output(cfg, folder):
    folder.mkdir(exist_ok=True)
    cfg.OUTPUT_DIR = str(folder)
    return cfg


@pytest.fixture
def trainer(tiny, tmp_path, command):
    """A trainer of the distilling config; ``command`` is here to tidy up the loggers."""
    return DistillTrainer(with_output(tiny.cfg("dpk"), tmp_path))


# ------------------------------------------------------------------ what is optimised


def test_student_and_distiller_are_optimised_and_nothing_of_the_teacher(trainer):
    model = trainer.model
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model.parameters()}
    assert {id(p) for p in model.distiller.parameters()} <= optimised
    assert not optimised & {id(p) for p in model.distillation.teacher.model.parameters()}


# ------------------------------------------------------------------ what is written


def test_the_fused_optimizer_makes_the_same_steps(tiny):
    models = {}
    for fused in (False, True):
        cfg = tiny.cfg("plain", "SOLVER.FUSED", fused)
        model = models[fused] = tiny.build("plain", seed=3)
        optimizer = DistillTrainer.build_optimizer(cfg, model)
        assert all(bool(group["fused"]) == fused for group in optimizer.param_groups)
        for step in range(3):
            g = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=g)
            optimizer.step()
    for (name, one), other in zip(
        models[False].named_parameters(), models[True].parameters(), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6), name


def test_metrics_have_the_losses_and_ratio_and_cka_of_every_level(trained):
    lines = read_metrics(trained)
    metrics = lines[0]
    assert metrics["iteration"] == 2
    assert metrics["loss_dpk"] > 0
    # medians over the steps, whose sum is not quite the median of the sums
    parts = sum(value for name, value in metrics.items() if name.startswith("loss_"))
    assert metrics["total_loss"] == pytest.approx(parts, rel=0.1)
    for level in LEVELS:
        cka, ratio = metrics[f"dpk/cka_{level}"], metrics[f"dpk/ratio_{level}"]
        assert -1 < cka < 1 and cka != 0
        # CKA was measured at the first step, and the ratio follows
        assert ratio == pytest.approx(min(max(1 - cka, 0), 1), abs=1e-6)


def test_the_console_line_shows_ratio_and_cka_as_they_are_in_the_metrics(trained):
    metrics = {name: value for line in read_metrics(trained) for name, value in line.items()}
    # the console's handler and the log file's get the same lines
    lines = [x for x in (trained / "log.txt").read_text().splitlines() if "iter: 2" in x]
    assert len(lines) == 1
    for what in ("ratio", "cka"):
        shown = ", ".join(f"{name} {metrics[f'dpk/{what}_{name}']:.2f}" for name in LEVELS)
        assert f"  dpk {what}: {shown}" in lines[0]
    assert re.search(r"iter: 2 .*total_loss: .*loss_dpk: .*lr: ", lines[0])  # Detectron2's own part


def test_a_plain_training_has_neither_prior_nor_distiller(tiny, tmp_path, command):
    command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", "1")
    assert "dpk ratio" not in (tmp_path / "log.txt").read_text()
    assert not any("dpk" in name for line in read_metrics(tmp_path) for name in line)
    assert json.loads((tmp_path / "results.json").read_text())["distiller_parameters"] == 0


def test_results_close_a_finished_run(tiny, trained):
    results = json.loads((trained / "results.json").read_text())
    plain, distilling = tiny.build("plain"), tiny.build("dpk")
    assert results["iterations"] == 3
    assert results["parameters"] == sum(p.numel() for p in plain.parameters())
    assert results["distiller_parameters"] == sum(
        p.numel() for p in distilling.distiller.parameters()
    )
    last = {name: value for line in read_metrics(trained) for name, value in line.items()}
    assert results["results"]["bbox"]["AP"] == last["bbox/AP"] > 0
    assert not list(trained.glob("*.partial"))
    assert results["machine"]["torch"] == torch.__version__
    assert results["machine"]["gpu"] is None or torch.cuda.is_available()
    assert 50 < results["peak_memory_mb"] < 50_000  # a process with torch


def test_the_seconds_of_a_step_are_the_median_of_those_measured(tiny, tmp_path, trainer):
    with EventStorage() as trainer.storage:
        for trainer.storage.iter, seconds in enumerate((0.5, 0.1, 0.2)):
            trainer.storage.put_scalar("time", seconds)
    trainer.write_results()
    assert json.loads((tmp_path / "results.json").read_text())["seconds_per_step"] == 0.2


@pytest.fixture
def broken_step(monkeypatch):
    """Makes the second step of a training fail."""

    def forward(self, *args):
        forward.calls += 1
        if forward.calls == 2:
            raise RuntimeError("out of luck")
        return intact(self, *args)

    forward.calls = 0
    intact = DPK.forward
    monkeypatch.setattr(DPK, "forward", forward)


def test_a_crash_leaves_no_results(tiny, tmp_path, command, broken_step):
    with pytest.raises(RuntimeError, match="out of luck"):
        command("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path)
    assert (tmp_path / "log.txt").exists()
    assert not (tmp_path / "results.json").exists()


def test_a_crash_leaves_no_results_of_an_earlier_run_either(tiny, tmp_path, command, broken_step):
    (tmp_path / "results.json").write_text("{}")  # train_all would take it for this run's
    with pytest.raises(RuntimeError, match="out of luck"):
        command("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path)
    assert not (tmp_path / "results.json").exists()


# ------------------------------------------------------------------ what is resumed


def test_a_resumed_run_goes_on_where_the_other_stopped(tiny, tmp_path, command):
    args = ("--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path)
    command(*args, "SOLVER.MAX_ITER", "2")
    saved = torch.load(tmp_path / "model_final.pth")
    assert saved["iteration"] == 1

    trainer = DistillTrainer(with_output(tiny.cfg("dpk", "SOLVER.MAX_ITER", "4"), tmp_path))
    fresh = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=True)
    resumed = trainer.model.state_dict()
    assert trainer.start_iter == 2
    assert set(resumed) == set(saved["model"])
    assert all(torch.equal(x, saved["model"][name]) for name, x in resumed.items())
    assert resumed[TERMS].abs().sum() > 0 == fresh[TERMS].abs().sum()
    assert any(
        not torch.equal(x, fresh[name])
        for name, x in resumed.items()
        if name.startswith("distiller.") and x.is_floating_point() and name != TERMS
    )

    command("--resume", *args, "SOLVER.MAX_ITER", "4")
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 3
    assert json.loads((tmp_path / "results.json").read_text())["iterations"] == 4


def test_a_resumed_run_has_the_optimizers_momentum_again(tiny, trained, tmp_path, command):
    # Detectron2 0.6 by itself saves the iteration and the schedule, but no optimizer
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    trainer = DistillTrainer(with_output(tiny.cfg("dpk"), tmp_path))
    trainer.resume_or_load(resume=True)
    momenta = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    assert len(momenta) == len(list(trainer.model.parameters()))
    assert any(m.abs().sum() > 0 for m in momenta)


def test_resuming_needs_a_checkpoint_else_it_starts_anew(trainer):
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


# ------------------------------------------------------------------ what it starts from


@pytest.mark.parametrize("kind", ["plain", "dpk"])
def test_inheriting_starts_from_the_teachers_heads_and_logs_them(
    tiny, tmp_path, command, kind, caplog, monkeypatch
):
    node = "DISTILL.TEACHER"
    opts = (f"{node}.CONFIG_FILE", tiny.teacher, f"{node}.WEIGHTS", tiny.weights)
    cfg = tiny.cfg(kind, "DISTILL.INHERIT", "True", *opts)
    trainer = DistillTrainer(with_output(cfg, tmp_path))
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    monkeypatch.setattr(logging.getLogger("dpk_det"), "propagate", True)  # to caplog
    with caplog.at_level(logging.INFO, "dpk_det"):
        trainer.resume_or_load(resume=False)
    after, teacher = trainer.model.state_dict(), torch.load(tiny.weights)["model"]

    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert "roi_heads.box_predictor.cls_score.weight" in changed
    assert "proposal_generator.rpn_head.conv.weight" in changed
    assert "backbone.fpn_output3.weight" in changed
    assert not any("bottom_up" in n or "lateral" in n or "distiller" in n for n in changed)
    assert all(torch.equal(after[name], teacher[name]) for name in changed)
    message = next(m for m in caplog.messages if m.startswith("Inherited"))
    taken, left = message.split("Not inherited")
    assert all(name in taken for name in changed)
    assert "fpn_lateral2.bias" in left and "roi_heads" not in left


def test_without_inherit_nothing_is_inherited(trainer):
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    assert all(torch.equal(x, before[name]) for name, x in trainer.model.state_dict().items())


def test_a_resumed_run_does_not_inherit_again(tiny, trained, tmp_path, command):
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    saved = torch.load(tmp_path / "model_final.pth")
    kept = saved["trainer"]["hooks"]["Continuity"]
    kept["config"] = kept["config"].replace("INHERIT: false", "INHERIT: true")
    torch.save(saved, tmp_path / "model_final.pth")
    trainer = DistillTrainer(with_output(tiny.cfg("dpk", "DISTILL.INHERIT", "True"), tmp_path))
    trainer.resume_or_load(resume=True)
    saved = saved["model"]
    assert all(torch.equal(x, saved[name]) for name, x in trainer.model.state_dict().items())


def test_weights_are_loaded_before_inheriting(tiny, tmp_path, command):
    start = tiny.build("plain", seed=9)
    torch.save({"model": start.state_dict()}, tmp_path / "start.pth")
    opts = ("MODEL.WEIGHTS", tmp_path / "start.pth", "DISTILL.INHERIT", "True")
    trainer = DistillTrainer(with_output(tiny.cfg("dpk", *opts), tmp_path))
    trainer.resume_or_load(resume=False)
    state, teacher = trainer.model.state_dict(), torch.load(tiny.weights)["model"]
    trunk, head = "backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.fc1.weight"
    assert torch.equal(state[trunk], start.state_dict()[trunk])
    assert torch.equal(state[head], teacher[head])


def test_the_distiller_of_an_earlier_training_is_left_behind(tiny, trained, trainer):
    weights = trained / "model_final.pth"
    saved = torch.load(weights)["model"]
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    trainer.cfg.defrost()
    trainer.cfg.MODEL.WEIGHTS = str(weights)
    trainer.resume_or_load(resume=False)
    assert TERMS in saved
    for name, x in trainer.model.state_dict().items():
        expected = before if name.startswith("distiller.") else saved
        assert torch.equal(x, expected[name]), name


def test_absent_weights_are_an_error_before_any_step(tiny, tmp_path, command):
    cfg = tiny.cfg("plain", "MODEL.WEIGHTS", tmp_path / "none.pth")
    trainer = DistillTrainer(with_output(cfg, tmp_path))
    with pytest.raises(UserError, match=r"none\.pth: give MODEL\.WEIGHTS"):
        trainer.resume_or_load(resume=False)


def test_one_teacher_serves_both_inheriting_and_distilling(tiny, tmp_path, command, monkeypatch):
    built = []
    init = Teacher.__init__
    monkeypatch.setattr(
        Teacher, "__init__", lambda self, *a, **kw: (built.append(self), init(self, *a, **kw))[1]
    )
    trainer = DistillTrainer(with_output(tiny.cfg("dpk", "DISTILL.INHERIT", "True"), tmp_path))
    trainer.resume_or_load(resume=False)
    assert len(built) == 1
